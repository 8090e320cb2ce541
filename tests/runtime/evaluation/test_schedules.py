"""Schedules and plans with several stages on a rank give, bit for bit, what one process gives."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import schedcc
from runtime import EvalResult, Evaluator
from runtime.execution.buffers import KEPT
from runtime.testing import InMemoryTransport
from runtime.transport.protocol import TransportError
from schedcc.io.exchange import from_torch_csv, to_torch_csv
from tests.support.exact_cases import Apply, keep_positive
from tests.support.models_for_tests import Data, batches, mlp, one_process, over_stages
from tests.support.own_schedules import Listed, Looped, edited, grouped, listed

BY_CHANNEL = {"queue": "channel"}
SHAPES = [
    ("interleaved", 2, 4),
    ("interleaved", 2, 6),
    ("interleaved", 3, 6),
    ("interleaved", 3, 9),
    ("v_shape", 2, 4),
    ("v_shape", 3, 6),
    (Looped(), 2, 6),
    (Listed((2, 0, 1, 1, 0), 7), 3, 5),
]


def ten() -> list[nn.Module]:
    return mlp(10)


def by_value() -> list[nn.Module]:
    """Layers that drop rows by their values: the shape follows from no other shape."""
    layers = ten()
    layers[2] = layers[7] = Apply(keep_positive)
    return layers


def total(output: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return output.double().sum() + len(output)


def over_ranks(ranks: int, call: Callable[..., Any], **options: Any) -> list[Any]:
    return over_stages(
        ranks, call, **{"layers": ten, "network": BY_CHANNEL, "timeout": 20.0} | options
    )


def require_exact(
    results: list[EvalResult], data: Data, layers: Callable[[], list[nn.Module]] = ten
) -> None:
    """Losses and, where they are, logits are those of one process."""
    logits, losses = one_process(layers(), data)
    for result in results:
        assert list(result.losses or ()) == losses
    for result in filter(lambda result: result.logits, results):
        assert all(map(torch.equal, result.logits or (), logits))
        assert len(result.logits or ()) == len(logits)


@pytest.mark.parametrize("overlap", [False, True, "auto"])
@pytest.mark.parametrize(("schedule", "ranks", "stages"), SHAPES, ids=str)
def test_a_schedule_gives_what_one_process_gives(schedule, ranks, stages, overlap):
    lengths = [1, ranks - 1, ranks + 1, 2 * ranks, 7]
    rounds = [batches([1 + m % 3 for m in range(length)]) for length in lengths]

    def call(ev: Evaluator) -> list[EvalResult]:
        return [ev.evaluate(iter(data), return_logits=True, logits_to="all") for data in rounds] + [
            ev.eval_batch(iter(data), return_logits=True, num_micro_batches=len(data))
            for data in rounds
        ]

    options = {"schedule": schedule, "stages": stages, "overlap": overlap}
    for number, results in enumerate(zip(*over_ranks(ranks, call, **options), strict=True)):
        require_exact(list(results), rounds[number % len(rounds)])
        if number < len(rounds):
            assert all(result.logits for result in results)


@pytest.mark.parametrize(("schedule", "ranks", "stages"), [SHAPES[0], SHAPES[3], SHAPES[5]])
@pytest.mark.parametrize("overlap", [False, True])
def test_a_long_stream_may_end_anywhere(schedule, ranks, stages, overlap):
    data = batches([1 + m % 3 for m in range(3 * 64 + 5)])
    ends = [1, 63, 64, 65, 66, len(data)]

    def call(ev: Evaluator) -> list[EvalResult]:
        return [ev.evaluate(iter(data[:end])) for end in ends]

    options = {"schedule": schedule, "stages": stages, "overlap": overlap}
    for end, results in zip(
        ends, zip(*over_ranks(ranks, call, **options), strict=True), strict=True
    ):
        require_exact(list(results), data[:end])


@settings(max_examples=20, deadline=None)
@given(
    schedule=listed(),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=7),
    overlap=st.booleans(),
    dynamic_shapes=st.booleans(),
)
def test_any_placement_and_order_gives_what_one_process_gives(
    schedule, sizes, overlap, dynamic_shapes
):
    data, ranks = batches(sizes), max(schedule.ranks_of_stages) + 1
    model = nn.Sequential(*by_value()).eval()
    with torch.no_grad():
        losses = [float(total(model(x.clone()), y)) for x, y in data]
    results = over_ranks(
        ranks,
        lambda ev: ev.evaluate(iter(data)),
        layers=by_value,
        loss_fn=total,
        schedule=schedule,
        stages=len(schedule.ranks_of_stages),
        overlap=overlap,
        dynamic_shapes=dynamic_shapes,
    )
    assert [list(result.losses) for result in results] == [losses] * ranks


SOURCES: dict[str, Callable[[schedcc.PipelinePlan, int], schedcc.PipelinePlan]] = {
    "edited by hand": edited,
    "with groups": grouped,
    "edited, with groups": lambda plan, seed: grouped(edited(plan, seed), seed),
    "through torch's file": lambda plan, _: from_torch_csv(to_torch_csv(plan)),
    "through JSON": lambda plan, _: schedcc.PipelinePlan.model_validate_json(
        plan.model_dump_json()
    ),
}


@pytest.mark.parametrize("source", SOURCES)
@settings(max_examples=8, deadline=None)
@given(schedule=listed(), seed=st.integers(0, 2**16), count=st.integers(1, 9), more=st.booleans())
def test_a_sound_plan_from_anywhere_gives_what_one_process_gives(
    source, schedule, seed, count, more
):
    stages, ranks = len(schedule.ranks_of_stages), max(schedule.ranks_of_stages) + 1
    own = schedcc.compile_pipeline(5, stages, schedule=schedule, ranks=ranks, overlap=True)
    changed = (SOURCES[source](own, seed + attempt) for attempt in range(20))
    plan = next((p for p in changed if p != own and schedcc.check(p).ok), own)
    data = batches([1 + m % 3 for m in range(count)])

    def call(ev: Evaluator) -> EvalResult:
        if count <= 5 and more:
            return ev.eval_batch(iter(data), return_logits=True, num_micro_batches=count)
        return ev.evaluate(iter(data), return_logits=True)  # as often as it takes

    results = over_ranks(ranks, call, plan=plan)
    require_exact(results, data)


@pytest.mark.parametrize("schedule", ["interleaved", "v_shape"])
def test_replicas_with_unequal_data_average_over_all_of_it(schedule):
    shards = [batches([3, 1, 4, 2, 2]), batches([2], seed=2)]

    def call(ev: Evaluator, replica: int) -> EvalResult:
        return ev.evaluate(iter(shards[replica]))

    results = over_ranks(2, call, replicas=2, schedule=schedule, stages=4)
    for replica, shard in enumerate(shards):
        require_exact(results[2 * replica : 2 * replica + 2], shard)
    losses = [loss for shard in shards for loss in one_process(ten(), shard)[1]]
    weights = [len(y) for shard in shards for _, y in shard]
    average = sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)
    (loss,) = {result.loss for result in results}
    assert loss == pytest.approx(average, rel=1e-12)


@pytest.mark.parametrize("schedule", ["interleaved", "v_shape"])
@pytest.mark.parametrize("logits_to", ["last", "first", "all"])
def test_logits_reach_the_ranks_of_the_stages_that_are_named(schedule, logits_to):
    data = batches([2, 1, 3, 2, 2])
    logits = one_process(ten(), data)[0]

    def call(ev: Evaluator) -> tuple[bool, list[tuple[int, torch.Tensor]]]:
        seen: list[tuple[int, torch.Tensor]] = []
        wanted = {"last": ev.is_last, "first": ev.is_first, "all": True}[logits_to]
        result = ev.evaluate(
            iter(data), logits_to=logits_to, on_logits=lambda m, y: seen.append((m, y.clone()))
        )
        assert result.logits is None
        return wanted, seen

    for wanted, seen in over_ranks(2, call, schedule=schedule, stages=4):
        assert [m for m, _ in seen] == (list(range(5)) if wanted else [])
        assert all(torch.equal(y, logits[m]) for m, y in seen)


def test_metrics_are_computed_where_the_last_stage_is():
    data = batches([2, 1, 3])
    model = nn.Sequential(*ten()).eval()
    with torch.no_grad():
        means = [float(model(x.clone()).mean()) for x, _ in data]
    for own in over_ranks(
        2,
        lambda ev: ev.evaluate(iter(data), reduce_output="mean_of_means").metrics,
        metrics={"mean": lambda y, _: y.mean()},
        schedule="v_shape",
        stages=4,
    ):
        assert own["mean"] == pytest.approx(sum(means) / 3, rel=1e-6)


@pytest.mark.parametrize(("schedule", "ranks", "stages"), [SHAPES[3], SHAPES[5], SHAPES[6]])
def test_received_activations_use_a_fixed_number_of_pieces_of_memory(
    schedule, ranks, stages, monkeypatch
):
    taken: list[int] = []
    monkeypatch.setattr(
        InMemoryTransport,
        "receive_memory",
        lambda end, nbytes: (
            taken.append(end.rank),
            torch.empty(nbytes, dtype=torch.uint8),
        )[1],
    )

    def call(ev: Evaluator) -> list[int]:
        counts = [0]
        for _ in range(5):
            ev.eval_batch(iter(batches([2] * 16)), num_micro_batches=16)
            counts.append(taken.count(ev.rank))
        return [after - before for before, after in pairwise(counts)]

    for pieces in over_ranks(ranks, call, schedule=schedule, stages=stages):
        assert pieces[0] > 0
        assert sum(pieces[1:]) <= KEPT  # where a rank ran ahead further than before


def test_one_queue_for_channels_that_lead_around_in_a_circle_is_refused():
    def call(_: Evaluator) -> None:
        raise AssertionError

    with pytest.raises(TransportError, match="queue is 'stage', but several stages on a rank lead"):
        over_ranks(2, call, network={"queue": "stage"}, schedule="interleaved", stages=4)
