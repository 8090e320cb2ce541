"""What an evaluation hands out: losses of any structure, reductions, metrics, and logits."""

import math
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from runtime import DataError, EvalResult, Evaluator, MetricError, label_log_probs
from runtime.outputs.values import layout_of
from runtime.planning.sources import CHUNK
from runtime.tensors.decoding import decode
from runtime.tensors.encoding import encode
from tests.support.models_for_tests import Data, batches, mlp, one_process, over_stages

SIZES = [3, 1, 4, 1, 2]
DATA = batches(SIZES)
LOGITS, LOSSES = one_process(mlp(), DATA)


def eval_batch(evaluator: Evaluator, data: Data = DATA, **options: Any) -> EvalResult:
    return evaluator.eval_batch(iter(data), **({"num_micro_batches": len(data)} | options))


def largest(output: torch.Tensor, _: Any) -> torch.Tensor:
    return output.max()


def rows(_: Any, label: torch.Tensor) -> int:
    return len(label)


def identical(found: Any, expected: list[torch.Tensor] = LOGITS) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("avg", math.fsum(n * x for n, x in zip(SIZES, LOSSES, strict=True)) / sum(SIZES)),
        ("sum", math.fsum(LOSSES)),
        ("mean_of_means", math.fsum(LOSSES) / len(LOSSES)),
        (None, None),
    ],
)
def test_losses_are_reduced_as_asked_on_every_stage(reduction, expected, stages):
    for result in over_stages(stages, lambda ev: eval_batch(ev, reduce_output=reduction)):
        assert result.loss == expected
        assert result.losses == tuple(LOSSES)


@pytest.mark.parametrize("stages", [1, 2])
def test_a_loss_may_be_nested_and_the_result_is_nested_alike(stages):
    def loss_fn(output: torch.Tensor, label: torch.Tensor) -> Any:
        mse = nn.functional.mse_loss(output, label)
        return {"mse": mse, "both": (mse.reshape(1, 1) * 2, len(label))}

    average = math.fsum(n * x for n, x in zip(SIZES, LOSSES, strict=True)) / sum(SIZES)
    for result in over_stages(stages, eval_batch, loss_fn=loss_fn):
        twice, size = result.loss["both"]
        assert result.loss["mse"] == average
        assert twice == pytest.approx(2 * average, rel=1e-15)
        assert size == sum(n * n for n in SIZES) / sum(SIZES)
        assert [loss["both"][1] for loss in result.losses] == SIZES
        assert [loss["mse"] for loss in result.losses] == LOSSES


def test_a_tuple_of_losses_gives_a_tuple():
    def loss_fn(output: torch.Tensor, label: torch.Tensor) -> Any:
        return nn.functional.mse_loss(output, label), label.new_tensor(3.0)

    def call(ev: Evaluator) -> list[EvalResult]:  # the second evaluation knows the structure
        return [eval_batch(ev), eval_batch(ev)]

    for first, second in over_stages(2, call, loss_fn=loss_fn):
        assert first == second
        assert isinstance(first.loss, tuple)
        assert first.loss[1] == 3.0


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda o, y: o - y, r"loss_fn returned float32 \[3, 6\], needed real scalars"),
        (
            lambda o, _: {"a": [o]},
            r"returned float32 \[3, 6\] at \['a'\]\[0\], needed real scalars",
        ),
        (lambda _o, _y: "low", "loss_fn returned 'low', needed real scalars"),
        (lambda _o, _y: None, "loss_fn returned None, needed real scalars"),
        (lambda o, _: o.sum() * 1j, r"returned complex64 \[\], needed real scalars"),
    ],
)
def test_a_loss_that_is_not_made_of_scalars_is_named(loss, message):
    with pytest.raises(ValueError, match=message):
        over_stages(1, eval_batch, loss_fn=loss)


def test_losses_of_two_structures_are_refused():
    def loss_fn(_: Any, label: torch.Tensor) -> Any:
        return (1.0, 2.0) if len(label) == 4 else 1.0

    expected = r"returned \{'loss': \('#0', '#1'\), .*\}, but \{'loss': '#0', .*\} for the micro-"
    with pytest.raises(ValueError, match=expected):
        over_stages(1, eval_batch, loss_fn=loss_fn)


def test_weights_may_be_counted_on_the_device():
    for result in over_stages(2, eval_batch, weight_fn=lambda label: (label > 0).sum()):
        assert result.weights == tuple(float((label > 0).sum()) for _, label in DATA)


@pytest.mark.parametrize("stages", [1, 2])
def test_metrics_that_are_functions_are_reduced_like_the_loss(stages):
    metrics = {"largest": largest, "rows": rows, "pair": lambda _o, _y: (1, torch.tensor([2.5]))}
    weighted = math.fsum(n * float(y.max()) for n, y in zip(SIZES, LOGITS, strict=True))
    for result in over_stages(stages, eval_batch, metrics=metrics):
        assert result.metrics["largest"] == weighted / sum(SIZES)
        assert result.metrics["pair"] == (1.0, 2.5)
        assert [found["rows"] for found in result.metrics_of_micro_batches] == SIZES
        assert result.losses == tuple(LOSSES)


def test_metrics_need_no_loss():
    for result in over_stages(
        2, lambda ev: eval_batch(ev, reduce_output="sum"), loss_fn=None, metrics={"rows": rows}
    ):
        assert result.metrics == {"rows": sum(SIZES)}
        assert result.loss is None
        assert result.losses is None


class Seen:
    """A metric with a state: how many rows, and their largest value."""

    def __init__(self) -> None:
        self.reset()

    def update(self, output: torch.Tensor, label: torch.Tensor) -> None:
        self.rows += len(label)
        self.largest = max(self.largest, float(output.max()))

    def compute(self) -> Any:
        return {"rows": torch.tensor(self.rows), "range": torch.tensor([0.0, self.largest])}

    def reset(self) -> None:
        self.rows, self.largest = 0, -math.inf


class Merging(Seen):
    """The same, which can take in the state of another."""

    def merge_state(self, other: "Merging") -> None:
        self.rows += other.rows
        self.largest = max(self.largest, other.largest)


@pytest.mark.parametrize("stages", [1, 3])
def test_metrics_with_a_state_are_fed_everything_and_computed_once(stages):
    data = batches([1 + m % 2 for m in range(CHUNK + 3)])
    largest_seen = max(float(y.max()) for y in one_process(mlp(), data)[0])

    def call(ev: Evaluator) -> tuple[EvalResult, EvalResult]:
        return ev.evaluate(iter(data)), eval_batch(ev)

    for whole, batch in over_stages(stages, call, metrics={"seen": Seen()}):
        assert whole.metrics["seen"]["rows"] == sum(len(y) for _, y in data)
        assert torch.equal(whole.metrics["seen"]["range"], torch.tensor([0.0, largest_seen]))
        assert batch.metrics["seen"]["rows"] == sum(SIZES)
        assert batch.losses == tuple(LOSSES)


def test_a_metric_without_a_way_to_merge_replicas_is_refused_at_once():
    expected = "metric 'seen' of type Seen has no merge_state, needed to combine its states in 2"
    with pytest.raises(MetricError, match=expected):
        over_stages(1, eval_batch, replicas=2, metrics={"seen": Seen()})
    with pytest.raises(MetricError, match="metric 'five' is 5, needed a function"):
        over_stages(1, eval_batch, metrics={"five": 5})


def test_states_of_replicas_are_merged():
    shards = [batches([2, 3]), batches([1], seed=4)]
    metrics = {(s, r): {"seen": Merging()} for s in range(2) for r in range(2)}
    built = {key: mlp() for key in metrics}

    from runtime.testing import run_threads

    def stage(end: Any) -> Any:
        key = end.rank, end.replica
        evaluator = Evaluator(
            built[key], metrics=metrics[key], transport=end, partition="uniform", replicas=2
        )
        return evaluator.evaluate(iter(shards[end.replica])).metrics["seen"]

    logits = [y for shard in shards for y in one_process(mlp(), shard)[0]]
    for found in run_threads(2, stage, replicas=2):
        assert found["rows"] == 6
        assert float(found["range"][1]) == max(float(y.max()) for y in logits)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("to", ["last", "first", "all"])
def test_logits_are_handed_out_where_they_are_wanted(to, stages, overlap):
    def call(ev: Evaluator) -> EvalResult:
        return eval_batch(ev, return_logits=True, logits_to=to, logits_device="cpu")

    results = over_stages(stages, call, overlap=overlap)
    wanted = {"last": {stages - 1}, "first": {0}, "all": set(range(stages))}[to]
    for stage_id, result in enumerate(results):
        if stage_id in wanted:
            assert identical(result.logits)
            assert sum(map(len, result.logits)) == sum(SIZES)
        else:
            assert result.logits is None


@pytest.mark.parametrize("to", ["last", "first", "all"])
def test_a_callback_gets_every_micro_batch_once_and_in_order_and_nothing_is_kept(to):
    data = batches([1 + m % 2 for m in range(CHUNK + 3)])
    logits, _ = one_process(mlp(), data)

    def call(ev: Evaluator) -> tuple[list[int], bool, Any]:
        seen: list[tuple[int, torch.Tensor]] = []
        result = ev.evaluate(
            iter(data), on_logits=lambda m, y: seen.append((m, y.clone())), logits_to=to
        )
        numbers = [m for m, _ in seen]
        return numbers, identical([y for _, y in seen], logits), result.logits

    wanted = {"last": {1}, "first": {0}, "all": {0, 1}}[to]
    for stage_id, (numbers, same, kept) in enumerate(over_stages(2, call)):
        assert kept is None
        assert numbers == (list(range(len(data))) if stage_id in wanted else [])
        assert same == (stage_id in wanted)


def test_logits_of_any_structure_are_moved():
    class Both(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return {"t": x.t(), "mask": (x > 0, torch.empty(0, 3)), "long": x.long()}

    def layers() -> list[nn.Module]:
        return [*mlp(2), Both()]

    def call(ev: Evaluator) -> Any:
        return eval_batch(ev, return_logits=True, compute_loss=False, logits_to="all").logits

    whole = nn.Sequential(*layers())
    for found in over_stages(3, call, layers=layers):
        for y, (x, _) in zip(found, DATA, strict=True):
            expected = whole(x)
            assert torch.equal(y["t"], expected["t"])
            assert y["t"].stride() == expected["t"].stride()
            assert torch.equal(y["mask"][0], expected["mask"][0])
            assert y["mask"][1].shape == (0, 3)
            assert torch.equal(y["long"], expected["long"])


def test_logits_may_be_reduced_to_what_is_wanted_of_them():
    generator = torch.Generator().manual_seed(0)
    labels = [torch.randint(0, 6, (n,), generator=generator) for n in SIZES]
    labels[0][1] = -100
    data = [(x, y) for (x, _), y in zip(DATA, labels, strict=True)]

    def call(ev: Evaluator) -> Any:
        return eval_batch(
            ev, data, return_logits=True, compute_loss=False, logits_fn=label_log_probs
        ).logits

    *_, found = over_stages(3, call)
    for y, logits, label in zip(found, LOGITS, labels, strict=True):
        expected = logits.log_softmax(-1).gather(-1, label.clamp(min=0)[:, None])[:, 0]
        assert torch.allclose(y, expected.where(label != -100, 0.0))
        assert y.shape == label.shape
    assert float(found[0][1]) == 0.0


def test_whoever_wants_labels_needs_data():
    def call(ev: Evaluator) -> None:
        own = iter(DATA) if ev.is_first else None
        with pytest.raises(Exception, match="stage 1 reads micro-batches, but its data is None"):
            ev.eval_batch(own, compute_loss=False, logits_fn=label_log_probs, num_micro_batches=2)

    over_stages(2, call)


def test_a_last_stage_that_computes_no_loss_keeps_in_step_with_the_first():
    def call(ev: Evaluator) -> list[EvalResult]:
        data = iter(DATA)
        blind = ev.eval_batch(data, compute_loss=False, num_micro_batches=2)
        return [blind, ev.eval_batch(data, num_micro_batches=3)]

    for blind, seeing in over_stages(2, call):
        assert blind.losses is None
        assert seeing.losses == tuple(LOSSES[2:])


def test_a_replica_without_data_and_without_peers_says_so():
    with pytest.raises(DataError, match="the data holds no micro-batch, needed at least one"):
        over_stages(1, lambda ev: ev.evaluate([]))


def test_a_layout_travels_between_processes_without_a_warning():
    layout = layout_of({"loss": 1.0, "metrics": {"a": (2.0, [3.0]), "b": {}}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arrived = decode(encode(layout))
    assert arrived == layout
    assert arrived.rebuild([4.0, 5.0, 6.0])["metrics"]["a"] == (5.0, [6.0])
