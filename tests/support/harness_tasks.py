"""Tasks of lm-evaluation-harness in local files: perplexity, multiple choice and generation."""

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "12", "dogs", " ran", "away", "from", "abba"]
PERPLEXITY, CHOICE, GENERATION = "local_perplexity", "local_choice", "local_generation"
OF_OWN_TASKS = "tests.support.harness_of_own_tasks"
"""The module that is run as the harness."""
TASKS = (PERPLEXITY, CHOICE, GENERATION)

_YAML = {
    PERPLEXITY: """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
    # The space at the end of the question belongs to the answer, for the harness.
    CHOICE: """
output_type: multiple_choice
doc_to_text: "{{question}} "
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    GENERATION: """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["a", "  "], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
""",
}


def write_tasks(folder: Path, *, generations: int = 6) -> Path:
    """Write the three tasks; the multiple-choice task has 60 items, half of one letter each."""
    draw = random.Random(1)

    def text(most: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, most)))

    items: dict[str, list[dict[str, Any]]] = {
        PERPLEXITY: [{"text": text(50)} for _ in range(12)],
        CHOICE: [
            {
                "question": text(20),
                "choices": [text(3) for _ in range(4)] if number % 2 else list("abcd"),
                "answer": draw.randrange(4),
            }
            for number in range(60)
        ],
        GENERATION: [{"question": text(8), "answer": text(1)} for _ in range(generations)],
    }
    for name, documents in items.items():
        lines = folder / f"{name}.jsonl"
        lines.write_text("".join(json.dumps(document) + "\n" for document in documents))
        source = {"data_files": {"test": str(lines)}, "cache_dir": str(folder / "cache")}
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {json.dumps(source)}\n"
            f"test_split: test\n{_YAML[name]}"
        )
    return folder


def answers(samples: Iterable[dict[str, Any]]) -> Iterator[Any]:
    """Every answer of a task's samples, in the order of documents and their requests."""
    for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
        for answer in sample["resps"]:
            yield answer[0]
