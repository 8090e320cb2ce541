"""Which stage is told to do what once all micro-batches are through."""

import pytest

from schedcc import (
    Outcome,
    ScheduleError,
    check,
    check_schedule,
    compile_epilogue,
    compile_pipeline,
)
from schedcc.schedules.epilogue import epilogue
from schemas import (
    AllReduceLoss,
    AllReduceMetrics,
    BroadcastLogits,
    BroadcastLoss,
    CollectLogits,
    ComputeMetrics,
    MoveLogits,
    ReduceLoss,
)
from tests.support.plans import all_outcomes

AVERAGE, KEEP = ReduceLoss(reduction="avg"), ReduceLoss(reduction="none")


def of_all_stages(stages: int, **wanted) -> list[tuple]:
    return [epilogue(range(stages), stage_id, Outcome(**wanted)) for stage_id in range(stages)]


def test_by_default_every_stage_learns_the_average_loss():
    broadcast = BroadcastLoss(source=2)
    assert of_all_stages(3) == [(broadcast,), (broadcast,), (AVERAGE, broadcast)]


def test_one_stage_has_nobody_to_broadcast_to():
    assert of_all_stages(1) == [(AVERAGE,)]
    assert of_all_stages(1, replicas=4) == [(AVERAGE, AllReduceLoss())]


def test_without_broadcast_only_the_last_stage_has_an_epilogue():
    assert of_all_stages(3, bcast_loss=False) == [(), (), (AVERAGE,)]


def test_without_reduction_all_losses_are_kept_and_broadcast():
    broadcast = BroadcastLoss(source=1)
    assert of_all_stages(2, reduce_output=None) == [(broadcast,), (KEEP, broadcast)]


def test_without_a_loss_there_is_nothing_to_do():
    assert of_all_stages(2, compute_loss=False) == [(), ()]
    assert of_all_stages(1, compute_loss=False, replicas=2) == [()]


def test_without_a_loss_the_logits_are_still_handed_out():
    assert of_all_stages(2, compute_loss=False, return_logits=True) == [(), (CollectLogits(),)]


def test_replicas_average_the_loss_before_it_is_broadcast():
    broadcast = BroadcastLoss(source=1)
    last = (AVERAGE, AllReduceLoss(), broadcast)
    assert of_all_stages(2, replicas=2) == [(broadcast,), last]


def test_losses_that_are_not_reduced_are_not_averaged_over_replicas():
    broadcast = BroadcastLoss(source=1)
    assert of_all_stages(2, reduce_output=None, replicas=2) == [(broadcast,), (KEEP, broadcast)]


def test_everything_at_once():
    broadcast = BroadcastLoss(source=1)
    last = (AVERAGE, AllReduceLoss(), broadcast, CollectLogits())
    assert of_all_stages(2, return_logits=True, replicas=2) == [(broadcast,), last]


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_every_outcome_compiles_to_a_sound_plan(micro_batches, stages):
    for outcome in all_outcomes():
        assert check(compile_pipeline(micro_batches, stages, outcome=outcome)).findings == ()


@pytest.mark.parametrize("reduction", ["mean", "none", "", False])
def test_a_reduction_that_does_not_exist_is_refused(reduction):
    with pytest.raises(ScheduleError) as raised:
        Outcome(reduce_output=reduction)
    needed = "needed 'avg', 'sum', 'mean_of_means' or None"
    assert str(raised.value) == f"reduce_output is {reduction!r}, {needed}"


def test_logits_go_where_they_are_wanted():
    move, give = MoveLogits(source=2, destination=0), BroadcastLogits(source=2)

    def wanted(stages: int, logits_to: str) -> list[tuple]:
        options = {"compute_loss": False, "return_logits": True, "logits_to": logits_to}
        return of_all_stages(stages, **options)

    assert wanted(3, "last") == [(), (), (CollectLogits(),)]
    assert wanted(3, "first") == [(move,), (), (move,)]
    assert wanted(3, "all") == [(give,)] * 3
    for logits_to in ("last", "first", "all"):
        assert wanted(1, logits_to) == [(CollectLogits(),)]


@pytest.mark.parametrize("logits_to", ["last", "first", "all"])
def test_a_schedule_of_any_size_is_proved_with_its_epilogue(logits_to):
    outcome = Outcome(return_logits=True, logits_to=logits_to, compute_metrics=True, replicas=2)
    for stages in (1, 2, 300):
        assert check_schedule(400, stages, outcome=outcome).findings == ()


def test_metrics_are_computed_before_they_are_broadcast():
    broadcast = BroadcastLoss(source=1)
    one = of_all_stages(2, compute_metrics=True)
    assert one == [(broadcast,), (AVERAGE, ComputeMetrics(), broadcast)]
    several = of_all_stages(2, compute_metrics=True, replicas=2)
    last = (AVERAGE, AllReduceLoss(), AllReduceMetrics(), broadcast)
    assert several == [(broadcast,), last]


@pytest.mark.parametrize("kind", ["sum", "mean_of_means"])
def test_other_reductions_are_extended_over_replicas_too(kind):
    last = (ReduceLoss(reduction=kind), AllReduceLoss())
    assert of_all_stages(1, reduce_output=kind, replicas=3) == [last]


def test_logits_go_nowhere_else():
    with pytest.raises(ScheduleError) as raised:
        Outcome(logits_to="middle")
    assert str(raised.value) == "logits_to is 'middle', needed 'last', 'first' or 'all'"


@pytest.mark.parametrize("stages", [1, 3])
def test_an_epilogue_without_micro_batches_is_a_sound_plan(stages):
    for outcome in all_outcomes():
        plan = compile_epilogue(stages, outcome=outcome)
        assert check(plan).findings == ()
        assert [p.epilogue for p in plan.programs] == [
            epilogue(range(stages), stage_id, outcome) for stage_id in range(stages)
        ]
        assert not any(program.steps for program in plan.programs)


@pytest.mark.parametrize("replicas", [0, -2, 1.5, True])
def test_there_is_at_least_one_replica(replicas):
    with pytest.raises(ScheduleError) as raised:
        Outcome(replicas=replicas)
    assert str(raised.value) == f"replicas is {replicas!r}, needed an integer of at least 1"
