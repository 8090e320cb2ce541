"""Which stage is told to do what once all micro-batches are through."""

import pytest

from schedcc import Outcome, ScheduleError, check, compile_pipeline
from schedcc.epilogue import epilogue
from schemas import AllReduceLoss, BroadcastLoss, CollectLogits, ReduceLoss
from tests.plans import all_outcomes

AVERAGE, KEEP = ReduceLoss(reduction="avg"), ReduceLoss(reduction="none")


def of_all_stages(stages: int, **wanted) -> list[tuple]:
    return [epilogue(stages, stage_id, Outcome(**wanted)) for stage_id in range(stages)]


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
    assert str(raised.value) == f"reduce_output is {reduction!r}, needed 'avg' or None"


@pytest.mark.parametrize("replicas", [0, -2, 1.5, True])
def test_there_is_at_least_one_replica(replicas):
    with pytest.raises(ScheduleError) as raised:
        Outcome(replicas=replicas)
    assert str(raised.value) == f"replicas is {replicas!r}, needed an integer of at least 1"
