"""The overlapped variant for channels that have queues of their own."""

from hypothesis import given, settings
from hypothesis import strategies as st

from schedcc import Costs, TransportModel, check, compile_pipeline, simulate
from schedcc.passes import overlapped_by_channel
from schedcc.testing.executor import execute
from schemas import PipelinePlan
from tests.support.own_schedules import listed

BY_CHANNEL = TransportModel(queue="channel")


def by_channel(plan: PipelinePlan) -> PipelinePlan:
    programs = tuple(overlapped_by_channel(program, plan) for program in plan.programs)
    return plan.model_copy(update={"programs": programs})


@settings(max_examples=40, deadline=None)
@given(schedule=listed(), micro_batches=st.integers(1, 7))
def test_it_is_sound_on_such_channels_whatever_the_schedule(schedule, micro_batches):
    placement = schedule.ranks_of_stages
    sizes = {"schedule": schedule, "ranks": max(placement) + 1}
    plan = by_channel(compile_pipeline(micro_batches, len(placement), **sizes))
    assert check(plan, BY_CHANNEL).ok
    execute(plan, BY_CHANNEL)


def test_in_a_ring_its_transfers_cross_forwards_and_on_one_queue_it_would_deadlock():
    sizes = {"schedule": "interleaved", "ranks": 4}
    plan = by_channel(compile_pipeline(16, 8, **sizes))
    assert "deadlock" in {finding.code for finding in check(plan).findings}
    costs = Costs(forward=1.0, transfer=0.4)
    in_order = compile_pipeline(16, 8, **sizes, overlap=True)
    found = simulate(plan, costs, BY_CHANNEL).makespan
    assert found < simulate(in_order, costs, BY_CHANNEL).makespan


def test_on_a_chain_it_is_the_overlapped_variant():
    plan = compile_pipeline(6, 4)
    assert by_channel(plan).programs == compile_pipeline(6, 4, overlap=True).programs
