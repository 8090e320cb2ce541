"""Perplexity without the logits of everything: few exist at a time, and the loss is the same."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime import Evaluator, NonFiniteError
from runtime.language.models import LazyModel, Targets, lazy_causal_lm, load_causal_lm, locate_model
from runtime.language.models.split.scores import LOGITS_AT_ONCE, target_losses
from runtime.language.perplexity import run
from runtime.language.perplexity.job import Job
from runtime.language.perplexity.reference import (
    LossInPieces,
    count_tokens,
    next_token_loss,
    reference,
)
from runtime.language.perplexity.scores import LossCollector, exact_loss, mean_target_loss
from runtime.language.text import Text, Windows, tokenize_documents
from runtime.testing import InMemoryTransport, run_threads
from schemas import LanguageModelEvaluation
from tests.support.forks import Program, run_pipeval
from tests.support.largest import Largest
from tests.support.tiny_models import saved_llama, tiny_model, tiny_tokenizer

TEXTS = [Text("first", "ab ab 12 naïve\nthe quick brown fox " * 4), Text("second", "漢字 12 ab")]


@pytest.fixture(scope="module")
def lazy(tmp_path_factory: pytest.TempPathFactory) -> LazyModel:
    return lazy_causal_lm(locate_model(str(saved_llama(tmp_path_factory.mktemp("llama")))))


def windows(mode: str) -> Windows:
    documents = tokenize_documents(tiny_tokenizer(), TEXTS, documents=mode, separator_id=None)
    return Windows(documents, 16, 3, stride=5)


def losses_over(lazy: LazyModel, stages: int, data: Windows) -> tuple[float, list[torch.Tensor]]:
    """The loss, and those of all targets as the last stage hands them out."""
    specs = lazy.specs(scoring=True)
    pairs = [(inputs, Targets.of(labels)) for inputs, labels in data]

    def stage(end: InMemoryTransport) -> tuple[float, list[torch.Tensor]]:
        torch.set_num_threads(1)
        found: list[torch.Tensor] = []
        collect = LossCollector(torch.device("cpu"), found.append)
        last = end.rank == stages - 1
        evaluator = Evaluator(
            specs,
            loss_fn=collect if last else mean_target_loss,
            weight_fn=len,
            partition="uniform",
            transport=end,
        )
        loss = evaluator.evaluate(pairs if last or end.rank == 0 else None).loss
        collect.finish()
        return loss, found

    return run_threads(stages, stage, timeout=60)[-1]


@pytest.mark.parametrize("mode", ["whole", "lines"])
def test_the_stages_change_no_bit_of_any_targets_loss(lazy: LazyModel, mode: str):
    data = windows(mode)
    loss, losses = losses_over(lazy, 1, data)
    assert sum(map(len, losses)) == data.tokens
    for stages in (2, 3):
        again, found = losses_over(lazy, stages, data)
        assert again == loss
        assert [each.tolist() for each in found] == [each.tolist() for each in losses]
    full = reference(tiny_model("llama"), data, next_token_loss, count_tokens)
    assert loss == pytest.approx(full.loss, rel=1e-6)


@pytest.mark.parametrize(("family", "dtype"), [("llama", torch.bfloat16), ("gpt2", torch.float32)])
def test_the_loss_is_that_of_one_process_to_the_last_bit(
    tmp_path: Path, family: str, dtype: torch.dtype
):
    tiny_model(family).save_pretrained(tmp_path)
    files, data = locate_model(str(tmp_path)), windows("whole")

    def alone(_: InMemoryTransport) -> float:
        torch.set_num_threads(1)
        model = load_causal_lm(files, dtype)
        pieces = LossInPieces(model)
        reference(model, data, pieces, count_tokens)
        return pieces.total

    losses = losses_over(lazy_causal_lm(files, dtype), 2, data)[1]
    assert run_threads(1, alone, timeout=60) == [exact_loss(torch.cat(losses))]


def test_a_head_that_is_not_finite_is_named(tmp_path: Path):
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    model.save_pretrained(tmp_path)
    specs = lazy_causal_lm(locate_model(str(tmp_path))).specs(scoring=True)
    data = [(inputs, Targets.of(labels)) for inputs, labels in windows("whole")]

    def stage(end: InMemoryTransport) -> str:
        evaluator = Evaluator(
            specs, loss_fn=mean_target_loss, weight_fn=len, check_finite=True, transport=end
        )
        with pytest.raises(NonFiniteError) as caught:
            evaluator.evaluate(data)
        return str(caught.value)

    said = run_threads(2, stage, timeout=60)
    head = len(specs) - 1
    assert said[0].startswith(
        "the loss of micro-batch 0 is not finite: all stages' outputs are finite, so the head "
        f"(layer {head}) or the loss function of stage 1 makes it so"
    )


@pytest.mark.parametrize("positions", [1, 7, 1000])
def test_losses_in_pieces_are_those_of_all_logits(lazy: LazyModel, positions: int):
    output: Any = next(iter(windows("lines")))[0]
    labels = next(iter(windows("lines")))[1]
    with torch.inference_mode():
        for spec in lazy.specs(scoring=True):
            output = spec.build()(output)
        vocabulary = output.head.vocabulary
        found = target_losses(output, Targets.of(labels), logits_at_once=positions * vocabulary)
        whole = target_losses(output.logits(), Targets.of(labels))
    torch.testing.assert_close(found, whole, rtol=1e-6, atol=0)


def watched(arguments: tuple[Path, Sequence[object]]) -> None:
    """`pipeval`, whose processes append the size of their largest tensor to a file."""
    path, options = arguments
    evaluate = run.run_rank

    def run_rank(job: Job) -> run.Outcome | None:
        with Largest() as largest:
            outcome = evaluate(job)
        with path.open("a") as file:
            file.write(f"{largest.elements}\n")
        return outcome

    run.run_rank = run_rank
    run_pipeval(options)


def test_pipeval_never_makes_the_logits_of_a_micro_batch(tmp_path: Path):
    vocabulary, rows, length = 2**15, 8, 257
    changes = {"vocab_size": vocabulary, "max_position_embeddings": length, "num_hidden_layers": 1}
    tiny_model("llama", **changes).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text").write_text("the quick brown fox " * 103)
    size = ["--sequence-length", length, "--micro-batch-size", rows, "--max-windows", rows]
    options = ["--model", tmp_path / "model", "--text", tmp_path / "text", *size, "--threads", 1]
    done = Program(watched, (tmp_path / "sizes", [*options, "--json"])).ended()
    assert done.returncode == 0, done.stderr
    assert LanguageModelEvaluation.model_validate_json(done.stdout).tokens == rows * (length - 1)
    sizes = [int(line) for line in (tmp_path / "sizes").read_text().split()]
    assert len(sizes) == 2
    assert max(sizes) <= LOGITS_AT_ONCE <= rows * (length - 1) * vocabulary / 4
