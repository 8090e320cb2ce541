"""How micro-batches are weighed: by samples where these are certain, else by the caller."""

import math
from collections import UserDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from runtime import DifferentDataError, NonFiniteError
from runtime.data.samples import WeightError, samples
from tests.runtime.evaluation.test_evaluator import eval_batch
from tests.support.models_for_tests import batches, mlp, one_process, over_stages

SIZES = (8, 8, 2)
DATA = batches(SIZES)
LABELS: dict[str, Any] = {
    "a tensor": lambda y: y,
    "an array of numpy": lambda y: y.numpy(),
    "nothing": lambda _: None,
    "a list of texts": lambda y: ["a"] * len(y),
    "a dict for each sample": lambda y: [{"labels": row, "boxes": row.repeat(3, 1)} for row in y],
    "class weights first": lambda y: {"class_weights": torch.ones(6), "labels": y},
    "the sequence first": lambda y: y.T.contiguous(),
    "packed": lambda y: y.reshape(1, -1),
}


def target(output: torch.Tensor, label: Any) -> torch.Tensor:
    """The labels, however they are wrapped; zeros where there are none."""
    if isinstance(label, np.ndarray):
        return torch.from_numpy(label)
    if isinstance(label, dict):
        return label["labels"]
    if isinstance(label, list) and isinstance(label[0], dict):
        return torch.stack([sample["labels"] for sample in label])
    if not isinstance(label, torch.Tensor):
        return torch.zeros_like(output)
    return label.T if label.shape == output.T.shape else label.reshape(output.shape)


def loss(output: torch.Tensor, label: Any) -> torch.Tensor:
    return nn.functional.mse_loss(output, target(output, label))


def whole(data: list[Any]) -> float:
    """The loss of all data at once, on one device."""
    model = nn.Sequential(*mlp()).eval()
    with torch.no_grad():
        outputs = [model(x.clone()) for x, _ in data]
    targets = [target(y, label) for y, (_, label) in zip(outputs, data, strict=True)]
    return float(nn.functional.mse_loss(torch.cat(outputs).double(), torch.cat(targets).double()))


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("kind", LABELS)
def test_unlike_micro_batches_weigh_as_on_one_device_or_a_weight_is_asked_for(kind, stages):
    data = [(x, LABELS[kind](y)) for x, y in DATA]

    def call(ev: Any) -> Any:
        return eval_batch(ev, data)

    if kind in ("a tensor", "an array of numpy"):
        for result in over_stages(stages, call, loss_fn=loss):
            assert result.weights == SIZES
            assert result.loss == pytest.approx(whole(data), rel=1e-6)
        return
    with pytest.raises((WeightError, RuntimeError), match="needed weight_fn"):
        over_stages(stages, call, loss_fn=loss)


@pytest.mark.parametrize("kind", LABELS)
def test_micro_batches_that_are_all_alike_need_no_weights(kind):
    data = [(x, LABELS[kind](y)) for x, y in batches([8, 8, 8])]
    for result in over_stages(2, lambda ev: eval_batch(ev, data), loss_fn=loss):
        assert result.loss == pytest.approx(whole(data), rel=1e-6)


def test_uncertain_micro_batches_may_differ_where_nothing_is_averaged_by_weight():
    data = [(x, None) for x, _ in DATA]

    def call(ev: Any) -> Any:
        return [eval_batch(ev, data, reduce_output=how) for how in ("sum", "mean_of_means", None)]

    for total, mean, none in over_stages(2, call, loss_fn=loss):
        assert total.loss == pytest.approx(sum(none.losses), rel=1e-12)
        assert mean.loss == pytest.approx(sum(none.losses) / 3, rel=1e-12)
        assert none.weights[0] == 1
        assert math.isnan(none.weights[2])


def test_inputs_and_labels_may_be_read_on_different_stages():
    def call(ev: Any) -> Any:
        own = [(x if ev.is_first else None, y if ev.is_last else None) for x, y in DATA]
        return eval_batch(ev, own)

    for result in over_stages(3, call, loss_fn=loss):
        assert result.weights == SIZES
        assert result.loss == pytest.approx(whole(DATA), rel=1e-6)


@pytest.mark.parametrize("uncertain", [False, True])
def test_replicas_whose_micro_batches_differ_are_told_apart(uncertain):
    shards = [batches([8, 8]), batches([2, 2], seed=2)]

    def call(ev: Any, replica: int) -> Any:
        data = [(x, None if uncertain else y) for x, y in shards[replica]]
        return ev.evaluate(data)

    if uncertain:
        with pytest.raises(
            (WeightError, RuntimeError), match="replicas have micro-batches that do"
        ):
            over_stages(2, call, replicas=2, loss_fn=loss)
        return
    for result in over_stages(2, call, replicas=2, loss_fn=loss):
        assert result.loss == pytest.approx(whole([*shards[0], *shards[1]]), rel=1e-6)


def ignored(rows: list[bool]) -> list[Any]:
    """Token data; the labels of some micro-batches are all -100."""
    generator = torch.Generator().manual_seed(3)
    data = []
    for number, is_ignored in enumerate(rows):
        label = torch.randint(0, 6, (4,), generator=generator)
        label[: 4 if is_ignored else number % 3] = -100
        data.append((torch.randn(4, 4, generator=generator), label))
    return data


def cross_entropy(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(output, label, ignore_index=-100)


def valid(label: torch.Tensor) -> torch.Tensor:
    return (label != -100).sum()


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("check_finite", [False, True])
def test_a_micro_batch_of_weight_zero_does_not_count(stages, check_finite):
    data = ignored([False, True, False, False])
    model = nn.Sequential(*mlp()).eval()
    with torch.no_grad():
        logits = torch.cat([model(x.clone()) for x, _ in data])
    expected = float(cross_entropy(logits, torch.cat([y for _, y in data])))

    def call(ev: Any) -> Any:
        return eval_batch(ev, data), eval_batch(ev, data, reduce_output="mean_of_means")

    found = over_stages(
        stages,
        call,
        loss_fn=cross_entropy,
        metrics={"same": cross_entropy},
        weight_fn=valid,
        check_finite=check_finite,
    )
    for average, means in found:
        assert math.isnan(average.losses[1])
        assert average.loss == pytest.approx(expected, rel=1e-6)
        assert average.metrics["same"] == average.loss
        finite = [value for value in means.losses if not math.isnan(value)]
        assert means.loss == pytest.approx(sum(finite) / 3, rel=1e-12)


def test_a_replica_without_anything_that_counts_does_not_count():
    shards = [ignored([False, False]), ignored([True, True])]

    def call(ev: Any, replica: int) -> Any:
        return ev.evaluate(shards[replica])

    def alone(ev: Any) -> Any:
        return ev.evaluate(shards[0])

    options: dict[str, Any] = {"loss_fn": cross_entropy, "weight_fn": valid}
    (expected,) = over_stages(1, alone, **options)
    for result in over_stages(2, call, replicas=2, **options):
        assert result.loss == expected.loss


@pytest.mark.parametrize("replicas", [1, 2])
def test_if_nothing_counts_that_is_an_error(replicas):
    data = ignored([True, True])

    def call(ev: Any, *_: int) -> Any:
        return ev.evaluate(data)

    text = f"the weights of all {2 * replicas} micro-batches are zero"
    with pytest.raises((WeightError, RuntimeError), match=text):
        over_stages(2, call, replicas=replicas, loss_fn=cross_entropy, weight_fn=valid)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(WeightError, match=f"the weight of micro-batch 0 is {weight}"):
        over_stages(1, lambda ev: eval_batch(ev, DATA), weight_fn=lambda _: weight)


@pytest.mark.parametrize("number", [np.float64, np.float32, float, torch.tensor])
def test_a_loss_that_is_not_finite_is_found_whatever_its_class(number):
    def nan(output: torch.Tensor, _: Any) -> Any:
        return {"a": number(float(output.mean())), "b": number(float("nan"))}

    with pytest.raises(NonFiniteError, match="the loss of micro-batch 0 is not finite"):
        over_stages(2, lambda ev: eval_batch(ev, DATA), loss_fn=nan, check_finite=True)


def test_samples_are_the_first_dimensions_of_tensors_and_arrays():
    nested = {"ids": torch.zeros(8, 5), "arrays": [np.zeros((8, 2)), np.float64(1.0)], "n": 3}
    assert samples(nested) == (8,)
    assert samples((torch.zeros(8, 5), torch.zeros(1, 5))) == (1, 8)
    assert samples(["a", None, 3]) == ()


def test_the_average_is_exact_beside_a_zero_weight():
    data = batches([3, 1, 4])
    _, losses = one_process(mlp(), data)
    weights = iter([2.0, 0.0, 5.0])
    (result,) = over_stages(1, lambda ev: eval_batch(ev, data), weight_fn=lambda _: next(weights))
    assert result.loss == math.fsum([losses[0] * 2, losses[2] * 5]) / 7


@pytest.mark.parametrize("weight", [None, "3", torch.ones(2)])
def test_a_weight_that_is_no_number_is_refused_in_one_sentence(weight):
    with pytest.raises(WeightError, match=r"weight_fn returned .*, needed one real number"):
        over_stages(1, lambda ev: eval_batch(ev, DATA), weight_fn=lambda _: weight)


def test_labels_that_only_the_last_stage_reads_count_for_what_is_alike():
    data = [(torch.ones(8, 4), torch.ones(n, 6)) for n in (3, 5)]

    def call(ev: Any) -> Any:
        own = [(x if ev.is_first else None, y if ev.is_last else None) for x, y in data]
        return eval_batch(ev, own)

    with pytest.raises((WeightError, RuntimeError), match="8 in its inputs and 5 in its labels"):
        over_stages(2, call, loss_fn=lambda y, label: (y[: len(label)] - label).square().mean())


@dataclass
class Batch:
    rows: torch.Tensor


@pytest.mark.parametrize("wrap", [Batch, lambda x: UserDict(rows=x)])
@pytest.mark.parametrize("stages", [1, 2])
def test_batches_of_a_class_of_one_s_own_are_weighed_by_what_they_hold(wrap, stages):
    class Rows(nn.Module):
        def forward(self, batch: Any) -> torch.Tensor:
            return batch.rows if isinstance(batch, Batch) else batch["rows"]

    def layers() -> list[nn.Module]:
        return [Rows(), *mlp()]

    def call(ev: Any) -> Any:
        return eval_batch(ev, [(wrap(x), y) for x, y in DATA])

    for result in over_stages(stages, call, layers=layers, loss_fn=loss):
        assert result.weights == SIZES
        assert result.loss == pytest.approx(whole(DATA), rel=1e-6)


@pytest.mark.parametrize("kind", ["inputs", "labels"])
def test_arrays_and_batches_of_one_s_own_are_compared_between_stages(kind):
    def call(ev: Any) -> Any:
        data = [(x.numpy(), Batch(y)) for x, y in batches([2, 2, 2])]
        if ev.is_last:
            data = [
                (data[1 - m][0], y) if kind == "inputs" else (x, data[1 - m][1])
                for m, (x, y) in enumerate(data[:2])
            ] + data[2:]
        return eval_batch(ev, data)

    with pytest.raises(DifferentDataError, match=f"read different {kind} as micro-batch 0"):
        over_stages(2, call)
