"""What holds for the inference schedule of any size."""

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedcc import Outcome, ScheduleError, check, compile_pipeline, compile_stage, dependency_graph
from schedcc.analysis.graph import Event
from schedcc.testing.plans import pipeline
from schedcc.testing.strategies import at_corners, outcomes, sizes
from schemas import ForwardPass, PipelinePlan, RecvActivation, SendActivation


@at_corners()
@given(size=sizes())
def test_every_stage_has_all_the_steps(size):
    micro_batches, stages = size
    plan = compile_pipeline(micro_batches, stages)
    assert {len(program.steps) for program in plan.programs} == {micro_batches + stages - 1}


@at_corners()
@given(size=sizes())
def test_stage_s_forwards_micro_batch_m_once_at_step_m_plus_s(size):
    micro_batches, stages = size
    for program in compile_pipeline(micro_batches, stages).programs:
        forwards = [
            (placed.instruction.micro_batch, placed.step)
            for placed in program.placed()
            if isinstance(placed.instruction, ForwardPass)
        ]
        assert forwards == [(m, m + program.rank) for m in range(micro_batches)]


@at_corners()
@given(size=sizes())
def test_micro_batch_m_stays_in_buffer_m_mod_2(size):
    plan = compile_pipeline(*size)
    instructions = [i for program in plan.programs for step in program.steps for i in step]
    assert all(i.buffer == i.micro_batch % 2 for i in instructions)


@at_corners()
@given(size=sizes())
def test_neighbours_never_both_send_first_or_both_receive_first(size):
    for program in compile_pipeline(*size).programs:
        for step in program.steps:
            kinds = [type(i) for i in step if isinstance(i, SendActivation | RecvActivation)]
            order = [SendActivation, RecvActivation]
            expected = order if program.rank % 2 == 0 else order[::-1]
            assert kinds == [kind for kind in expected if kind in kinds]


def ends_of_transfers(plan: PipelinePlan, kind: type) -> set[tuple[int, int, int, int]]:
    """`(source, destination, step, micro_batch)` of every transfer of one kind."""
    ends = set()
    for program in plan.programs:
        for placed in program.placed():
            if isinstance(placed.instruction, kind):
                channel = (program.rank, placed.instruction.peer)
                channel = channel if kind is SendActivation else channel[::-1]
                ends.add((*channel, placed.step, placed.instruction.micro_batch))
    return ends


@at_corners()
@given(size=sizes())
def test_every_send_meets_its_receive_in_the_same_step(size):
    micro_batches, stages = size
    plan = compile_pipeline(micro_batches, stages)
    sends = ends_of_transfers(plan, SendActivation)
    assert sends == ends_of_transfers(plan, RecvActivation)
    assert len(sends) == micro_batches * (stages - 1)


def has_deadlock_with_barriers(plan: PipelinePlan) -> bool:
    """Whether a barrier between successive steps could get stuck."""
    graph = dependency_graph(plan)
    for program in plan.programs:
        for placed in program.placed():
            if placed.step is not None:
                start, end = (Event(program.rank, placed.offset, m) for m in ("start", "end"))
                graph.add_edge(("barrier", placed.step), start, why="barrier")
                graph.add_edge(end, ("barrier", placed.step + 1), why="barrier")
    return not nx.is_directed_acyclic_graph(graph)


@at_corners()
@given(size=sizes())
def test_a_barrier_between_successive_steps_cannot_deadlock(size):
    assert not has_deadlock_with_barriers(compile_pipeline(*size))


def test_a_barrier_does_deadlock_where_the_two_ends_are_in_different_steps():
    plan = pipeline("L0 F0 | S0 |", " | | R0 L0 F0")
    assert check(plan).ok
    assert has_deadlock_with_barriers(plan)


@at_corners()
@given(size=sizes())
def test_the_plan_of_any_size_is_sound(size):
    plan = compile_pipeline(*size)
    report = check(plan)
    assert report.ok
    assert report.findings == ()


@at_corners(outcome=Outcome())
@settings(max_examples=50)
@given(size=sizes(8, 6), outcome=outcomes())
def test_one_stage_alone_compiles_to_its_part_of_the_pipeline(size, outcome):
    micro_batches, stages = size
    plan = compile_pipeline(micro_batches, stages, outcome=outcome)
    for stage_id in range(stages):
        alone = compile_stage(micro_batches, stages, stage_id, outcome=outcome)
        assert alone == plan.stage(stage_id)
        assert alone.fingerprint == plan.stage(stage_id).fingerprint
        assert alone.program == plan.programs[stage_id]


@settings(max_examples=60)
@given(first=st.tuples(sizes(6, 4), outcomes()), second=st.tuples(sizes(6, 4), outcomes()))
def test_fingerprints_differ_exactly_when_plans_do(first, second):
    (size_a, outcome_a), (size_b, outcome_b) = first, second
    a = compile_pipeline(*size_a, outcome=outcome_a)
    b = compile_pipeline(*size_b, outcome=outcome_b)
    assert (a.fingerprint == b.fingerprint) == (a == b)
    if size_a != size_b:
        assert a.fingerprint != b.fingerprint


@pytest.mark.parametrize("count", [0, -1, 1.0, "2", True, None])
def test_a_pipeline_needs_at_least_one_micro_batch_and_one_stage(count):
    with pytest.raises(ScheduleError) as raised:
        compile_pipeline(count, 2)
    assert str(raised.value) == f"micro_batches is {count!r}, needed an integer of at least 1"
    with pytest.raises(ScheduleError) as raised:
        compile_stage(2, count, 0)
    assert str(raised.value) == f"stages is {count!r}, needed an integer of at least 1"


@pytest.mark.parametrize("stage_id", [-1, 3, 0.0, "0", False, None])
def test_a_stage_must_be_one_of_the_pipeline(stage_id):
    with pytest.raises(ScheduleError) as raised:
        compile_stage(2, 3, stage_id)
    assert str(raised.value) == (
        f"stage_id is {stage_id!r}, needed an integer from 0 to 2 (stages=3)"
    )


def test_the_only_stage_is_stage_0():
    with pytest.raises(ScheduleError, match=r"^stage_id is 1, needed 0 \(stages=1\)$"):
        compile_stage(2, 1, 1)
