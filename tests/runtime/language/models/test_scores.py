"""Scores of labels: the head is applied where somebody asks, in pieces, and nowhere else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax

from runtime import EvalResult, Evaluator
from runtime.language.models import (
    PendingLogits,
    ScoringLayer,
    label_scores,
    lazy_causal_lm,
    locate_model,
    mean_loss,
    split_causal_lm,
)
from runtime.testing import InMemoryTransport, run_threads
from tests.support.families import VOCABULARY, family_model
from tests.support.largest import Largest

IGNORED = -100


def some(rows: int = 4, columns: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (rows, columns), generator=generator)
    labels = torch.randint(VOCABULARY, (rows, columns), generator=generator)
    labels[torch.rand(rows, columns, generator=generator) < 0.6] = IGNORED
    return ids, labels


@torch.inference_mode()
def pending(family: str, ids: torch.Tensor) -> PendingLogits:
    *layers, head = split_causal_lm(family_model(family))
    value: Any = ids
    for layer in layers:
        value = layer(value)
    found = ScoringLayer(head)(value)
    assert isinstance(found, PendingLogits)
    return found


@pytest.mark.parametrize("family", ["granite", "gemma2", "gpt2", "opt"])
@pytest.mark.parametrize("positions", [1, 3, 1000])
def test_scores_are_those_of_the_logits(family: str, positions: int):
    ids, labels = some()
    output = pending(family, ids)
    with torch.inference_mode():
        logits = output.logits()
        found = label_scores(output, labels, logits_at_once=positions * VOCABULARY)
    asked = labels != IGNORED
    expected = log_softmax(logits, -1)[asked].gather(1, labels[asked][:, None]).squeeze(1)
    torch.testing.assert_close(found.log_probs[asked], expected)
    assert torch.equal(found.greedy[asked], (logits.argmax(-1) == labels)[asked])
    assert not found.log_probs[~asked].any()
    assert found.greedy[~asked].all()


def test_the_greedy_token_is_greedy():
    ids, _ = some()
    output = pending("llama", ids)
    with torch.inference_mode():
        assert label_scores(output, output.logits().argmax(-1)).greedy.all()


def test_no_more_logits_exist_than_were_allowed():
    ids, labels = some(8, 50)
    output = pending("llama", ids)
    weight = output.head.lm.lm_head.weight.numel()
    for positions in (8, 40):
        with torch.inference_mode(), Largest() as largest:
            label_scores(output, labels, logits_at_once=positions * VOCABULARY)
        bound = max(positions * VOCABULARY, output.hidden.numel(), weight)
        assert positions * VOCABULARY <= largest.elements <= bound < labels.numel() * VOCABULARY


@pytest.mark.parametrize("columns", [1, 17, 400])
def test_the_mean_is_that_of_cross_entropy_bit_for_bit(columns: int):
    torch.set_num_threads(1)
    ids, labels = some(3, columns)
    labels[0, 0] = 1
    logits = torch.randn(*labels.shape, VOCABULARY, generator=torch.Generator().manual_seed(1))
    expected = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    assert torch.equal(mean_loss(label_scores(logits, labels), labels), expected)
    assert ids.shape == labels.shape


def loss(output: PendingLogits, labels: torch.Tensor) -> torch.Tensor:
    return mean_loss(label_scores(output, labels, logits_at_once=5 * VOCABULARY), labels)


def test_stages_score_without_logits_and_the_stages_change_no_bit(tmp_path: Path):
    family_model("mixtral").save_pretrained(tmp_path)
    lazy = lazy_causal_lm(locate_model(str(tmp_path)))
    data = [some(3, 9), some(2, 14)]

    def run(stages: int) -> EvalResult:
        specs = lazy.specs(scoring=True)

        def stage(end: InMemoryTransport) -> EvalResult:
            torch.set_num_threads(1)
            evaluator = Evaluator(specs, loss_fn=loss, partition="uniform", transport=end)
            given = data if evaluator.is_first or evaluator.is_last else None
            return evaluator.evaluate(given)

        return run_threads(stages, stage, timeout=60)[-1]

    alone = run(1)
    with torch.inference_mode():
        expected = [float(loss(pending("mixtral", ids), labels)) for ids, labels in data]
    assert list(alone.losses) == expected
    assert run(2).losses == run(3).losses == alone.losses
