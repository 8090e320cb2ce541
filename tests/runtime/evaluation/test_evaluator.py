"""`eval_batch` and `evaluate`: DeepSpeed's parameters, and the values of a single device."""

import logging
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from runtime import EvalResult, Evaluator
from runtime.planning.sources import CHUNK
from tests.support.models_for_tests import batches, mlp, one_process, over_stages

SIZES = [3, 1, 4, 1, 2]


def eval_batch(evaluator: Evaluator, data: Any, **options: Any) -> EvalResult:
    options = {"num_micro_batches": len(data)} | options
    return evaluator.eval_batch(iter(data), **options)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("stages", [1, 2, 3, 6])
def test_loss_and_logits_are_those_of_one_process(stages, overlap):
    data = batches(SIZES)
    logits, losses = one_process(mlp(), data)
    results = over_stages(
        stages, lambda ev: eval_batch(ev, data, return_logits=True), overlap=overlap
    )
    average = sum(n * loss for n, loss in zip(SIZES, losses, strict=True)) / sum(SIZES)
    for result in results:
        assert result.micro_batches == 5
        assert result.losses == tuple(losses)
        assert result.weights == (3, 1, 4, 1, 2)
        assert result.loss == pytest.approx(average, rel=1e-12)
    assert all(result.logits is None for result in results[:-1])
    assert all(torch.equal(a, b) for a, b in zip(results[-1].logits, logits, strict=True))


def test_ragged_micro_batches_are_weighed_as_one_device_would():
    """Sums and token counts (2, 1) and (90, 9): 92 / 10, where a mean of means gives 6."""
    data = [(torch.zeros(1), torch.full((1,), 2.0)), (torch.zeros(9), torch.full((9,), 10.0))]
    (result,) = over_stages(
        1,
        lambda ev: eval_batch(ev, data),
        layers=lambda: [nn.Identity()],
        loss_fn=lambda output, label: (label - output).mean(),
        weight_fn=lambda label: label.numel(),
    )
    assert result.losses == (2.0, 10.0)
    assert result.loss == 9.2


def test_without_reduction_every_stage_gets_all_losses():
    data = batches(SIZES)
    _, losses = one_process(mlp(), data)
    for result in over_stages(3, lambda ev: eval_batch(ev, data, reduce_output=None)):
        assert result.loss is None
        assert result.losses == tuple(losses)


def test_without_broadcast_only_the_last_stage_knows_the_loss():
    data = batches(SIZES)
    *others, last = over_stages(3, lambda ev: eval_batch(ev, data, bcast_loss=False))
    assert last.loss is not None
    assert all(result.loss is None and result.losses is None for result in others)


def test_without_a_loss_there_are_logits_and_no_labels_are_read():
    data = [(inputs, None) for inputs, _ in batches(SIZES)]

    def call(ev: Evaluator) -> EvalResult:
        own = iter(data) if ev.is_first else None
        return ev.eval_batch(own, return_logits=True, compute_loss=False, num_micro_batches=5)

    results = over_stages(2, call, loss_fn=None)
    assert all(result.loss is None for result in results)
    assert [len(y) for y in results[-1].logits] == SIZES


def test_micro_batches_may_change_from_one_evaluation_to_the_next():
    rounds = [batches([2, 2, 2]), batches([1, 4], seed=2), batches([5], seed=3), batches([2, 2, 2])]

    def call(ev: Evaluator) -> list[float | None]:
        return [eval_batch(ev, data).loss for data in rounds]

    expected = over_stages(1, call)[0]
    for losses in over_stages(3, call):
        assert losses == expected
    assert expected[0] == expected[3]


class Tree(nn.Module):
    """Turns a tensor into nested tensors of several dtypes, and back."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.last = last

    def forward(self, x: Any) -> Any:
        if not self.last:
            mask = x[:, :1] > 0
            return {"hidden": x.t(), "extra": (mask, mask.to(torch.int16), x.to(torch.bfloat16))}
        mask, count, half = x["extra"]
        return x["hidden"].t() * mask + count + half.float()


def test_activations_may_be_nested_and_of_any_dtype():
    def layers() -> list[nn.Module]:
        return [*mlp(2), Tree(last=False), nn.Identity(), Tree(last=True)]

    data = batches(SIZES)
    _, losses = one_process(layers(), data)
    for stages in (2, 5):
        for overlap in (False, True):
            for result in over_stages(
                stages, lambda ev: eval_batch(ev, data), layers=layers, overlap=overlap
            ):
                assert result.losses == tuple(losses)


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    stages=st.integers(1, 4),
    seed=st.integers(0, 5),
    overlap=st.booleans(),
)
@settings(max_examples=40)
def test_any_shape_gives_the_single_device_value(sizes, stages, seed, overlap):
    data = batches(sizes, seed)
    logits, losses = one_process(mlp(seed=seed), data)
    results = over_stages(
        stages,
        lambda ev: eval_batch(ev, data, return_logits=True),
        layers=lambda: mlp(seed=seed),
        overlap=overlap,
    )
    assert results[0].losses == tuple(losses)
    assert sum(len(y) for y in results[-1].logits) == sum(sizes)
    assert all(torch.equal(a, b) for a, b in zip(results[-1].logits, logits, strict=True))


def test_a_data_set_of_unknown_length_is_evaluated_whole():
    sizes = [1 + m % 3 for m in range(CHUNK + 5)]
    data = batches(sizes)
    seen: list[int] = []

    def call(ev: Evaluator) -> EvalResult:
        own = (pair for pair in data) if ev.is_first or ev.is_last else None
        return ev.evaluate(own, on_logits=lambda m, y: seen.append(m * 10 + len(y)))

    _, losses = one_process(mlp(), data)
    average = sum(n * loss for n, loss in zip(sizes, losses, strict=True)) / sum(sizes)
    for result in over_stages(3, call):
        assert result.micro_batches == CHUNK + 5
        assert result.losses == tuple(losses)
        assert result.loss == pytest.approx(average, rel=1e-12)
    assert seen == [m * 10 + n for m, n in enumerate(sizes)]


def test_a_data_set_that_fills_its_last_chunk_is_not_asked_for_more():
    data = batches([1] * CHUNK)
    (result,) = over_stages(1, lambda ev: ev.evaluate(data))
    assert result.micro_batches == CHUNK


def test_modes_random_numbers_and_data_are_left_as_they_were():
    data = batches([2, 2])
    before = [inputs.clone() for inputs, _ in data]
    layers = [nn.Linear(4, 6), nn.Dropout(), nn.Linear(6, 6)]
    layers[1].eval()
    torch.manual_seed(5)
    random.seed(5)
    state = torch.get_rng_state()

    evaluator = Evaluator(layers, loss_fn=nn.functional.mse_loss)
    eval_batch(evaluator, data)
    assert [layer.training for layer in evaluator.module] == [True, False, True]
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, (b, _) in zip(before, data, strict=True))
    assert all(parameter.grad is None for parameter in evaluator.module.parameters())


def test_a_result_with_logits_is_the_pair_that_deepspeed_returns():
    data = batches(SIZES)
    results = over_stages(2, lambda ev: eval_batch(ev, data, return_logits=True))
    for result in results:
        loss, logits = result
        assert (loss, logits) == (result.loss, result.logits)
    assert results[0].logits is None
    (without,) = over_stages(1, lambda ev: eval_batch(ev, data))
    with pytest.raises(TypeError, match=r"without return_logits=True has no pair: use its \.loss"):
        loss, logits = without


def halved(hidden: torch.Tensor) -> torch.Tensor:
    return hidden / 2


def test_functions_among_the_layers_are_layers():
    data = batches(SIZES)
    modules = mlp(4)
    functions = [*modules[:2], halved, *modules[2:], nn.functional.relu, lambda x: x - 1]
    logits, losses = one_process(
        [f if isinstance(f, nn.Module) else Applied(f) for f in functions], data
    )
    results = over_stages(
        4,
        lambda ev: eval_batch(ev, data, return_logits=True),
        layers=lambda: functions,
        partition="uniform",
    )
    assert results[0].losses == tuple(losses)
    assert all(torch.equal(a, b) for a, b in zip(results[-1].logits, logits, strict=True))


class Applied(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.function(hidden)


def test_an_evaluator_says_who_it_is(caplog):
    caplog.set_level(logging.INFO, "runtime")
    names = over_stages(2, lambda ev, _: repr(ev), replicas=2)
    assert names[3] == "<Evaluator replica 1 of 2, rank 1, cpu; stage 1 of 2: layers 3-5>"
    assert "rank 3 of the job: " + names[3] in caplog.messages
    (name,) = over_stages(1, repr, schedule="inference")
    assert name == "<Evaluator replica 0 of 1, rank 0, cpu; stage 0 of 1: layers 0-5>"
    assert "Evaluator object at" in repr(Evaluator.__new__(Evaluator)), "as tracebacks show it"
