"""The timetables of `docs/explanation/checking.md`, held against the graphs of compiled plans."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedcc import Costs, compile_pipeline, dependency_graph, simulate
from schedcc.analysis.graph import Event
from schedcc.testing import TRANSPORT_MODELS, transport_models
from schedcc.testing.executor import execute
from schedcc.testing.plans import pipeline, with_program
from schedcc.testing.strategies import at_corners, sizes
from schemas import Instruction, PipelinePlan, TransportModel


def blocking(stage: int, step: int, i: Instruction) -> tuple[int, int]:
    """Start and end of an instruction in the blocking form."""
    first = 3 * step
    match i.op:
        case "LoadMicroBatch":
            return first, first
        case "SendActivation":
            return (first, first + 1) if stage % 2 == 0 else (first + 1, first + 2)
        case "RecvActivation":
            return (first + 1, first + 2) if stage % 2 == 0 else (first, first + 1)
        case "ForwardPass":
            return first + 2, first + 3
    raise AssertionError(i)


def overlapped(stage: int, micro_batches: int, i: Instruction) -> tuple[int, int]:
    """Start and end of an instruction in the overlapped form; a post ends with its transfer."""
    m = i.micro_batch
    forward = 3 * stage + 2 * m
    match i.op:
        case "LoadMicroBatch" | "WaitRecvActivation":
            return forward, forward
        case "ForwardPass":
            return forward, forward + 1
        case "PostSendActivation":
            return forward + 1, forward + 3
        case "PostRecvActivation":
            return (0 if m < 2 else forward - 3), forward
        case "WaitSendActivation":
            waited = forward + 4 if m + 2 < micro_batches else forward + 3
            return waited, waited
    raise AssertionError(i)


def timetable(plan: PipelinePlan, overlap: bool) -> dict[Event, int]:
    times: dict[Event, int] = {}
    after_all = 3 * (plan.micro_batches + plan.stages)
    for program in plan.programs:
        for offset, step, instruction in program.placed():
            if step is None:
                collective = instruction.op == "BroadcastLoss"
                start, end = after_all, after_all + collective
            elif overlap:
                start, end = overlapped(program.rank, plan.micro_batches, instruction)
            else:
                start, end = blocking(program.rank, step, instruction)
            times[Event(program.rank, offset, "start")] = start
            times[Event(program.rank, offset, "end")] = end
    return times


@at_corners(overlap=True, model=TRANSPORT_MODELS[0])
@at_corners(overlap=False, model=TRANSPORT_MODELS[0])
@settings(max_examples=60)
@given(size=sizes(10, 8), overlap=st.booleans(), model=transport_models())
def test_no_edge_leads_back_in_time_and_those_between_stages_take_time(size, overlap, model):
    plan = compile_pipeline(*size, overlap=overlap)
    times = timetable(plan, overlap)
    graph = dependency_graph(plan, model)
    assert times.keys() == set(graph.nodes)
    for before, after, why in graph.edges(data="why"):
        between = before.rank != after.rank or why == "queue"
        needed = 0 if why == "collective" and before.moment == "end" else int(between)
        assert times[after] >= times[before] + needed, (before, after, why)


@at_corners(overlap=True)
@at_corners(overlap=False)
@settings(max_examples=30)
@given(size=sizes(10, 8), overlap=st.booleans())
def test_both_ends_of_a_transfer_end_together_and_the_transfers_of_a_stage_do_not_overlap(
    size, overlap
):
    plan = compile_pipeline(*size, overlap=overlap)
    times = timetable(plan, overlap)
    ends: dict[tuple[int, int], set[int]] = {}
    for program in plan.programs:
        busy = []
        for offset, _, i in program.placed():
            if i.op in ("SendActivation", "RecvActivation") or i.op.startswith("Post"):
                end = times[Event(program.rank, offset, "end")]
                busy.append(end)
                target = i.peer if "Send" in i.op else program.rank
                ends.setdefault((target, i.micro_batch), set()).add(end)
        assert all(a + 1 <= b for a, b in pairwise(busy))
    assert all(len(both) == 1 for both in ends.values())


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (5, 1), (1, 5), (3, 6), (9, 4)], ids=str)
def test_the_last_forward_ends_when_the_page_says(size, overlap):
    micro_batches, stages = size
    plan = compile_pipeline(micro_batches, stages, overlap=overlap)
    forwards = [
        time
        for event, time in timetable(plan, overlap).items()
        if dependency_graph(plan).nodes[event]["instruction"].op == "ForwardPass"
    ]
    bound = 2 * micro_batches + 3 * stages - 4 if overlap else 3 * (micro_batches + stages - 1)
    assert max(forwards) == bound


@pytest.mark.parametrize(("order", "makespan"), [("LSRF", 204), ("LRSF", 214), ("", 209)])
def test_the_order_of_transfers_in_a_step_costs_what_the_page_says(order, makespan):
    plan = compile_pipeline(64, 8)
    if order:
        for program in plan.programs:
            steps = (sorted(step, key=lambda i: order.index(i.op[0])) for step in program.steps)
            changed = program.model_copy(update={"steps": tuple(map(tuple, steps))})
            plan = with_program(plan, changed)
    assert simulate(plan, Costs(forward=1, transfer=1)).makespan == makespan


@at_corners(overlap=True)
@settings(max_examples=40)
@given(size=sizes(10, 8), overlap=st.booleans())
def test_compiled_plans_of_both_forms_execute_with_a_barrier_after_every_step(size, overlap):
    execute(compile_pipeline(*size, overlap=overlap), TransportModel(step_barrier=True))


@at_corners()
@settings(max_examples=40)
@given(size=sizes(10, 6))
def test_a_program_of_the_overlapped_form_is_in_the_order_that_the_page_says(size):
    micro_batches, stages = size
    for program in compile_pipeline(*size, overlap=True).programs:
        first, last = program.rank == 0, program.rank == stages - 1
        wanted = [] if first else [("PostRecvActivation", m) for m in range(2)]
        for m in range(micro_batches):
            wanted += [("LoadMicroBatch", m)] if first or last else []
            wanted += [] if last else [("WaitSendActivation", m - 2)]
            wanted += [] if first else [("WaitRecvActivation", m)]
            wanted += [("ForwardPass", m)]
            wanted += [] if last else [("PostSendActivation", m)]
            wanted += [] if first else [("PostRecvActivation", m + 2)]
        if not last:
            wanted += [("WaitSendActivation", m) for m in (micro_batches - 2, micro_batches - 1)]
        found = [(i.op, i.micro_batch) for step in program.steps for i in step]
        assert found == [(op, m) for op, m in wanted if 0 <= m < micro_batches]


def test_the_span_of_a_post_lasts_until_its_transfer_has_ended():
    plan = pipeline("L0 F0 { s>0 } s.0", "{ r<0 } r.0 L0 F0")
    sender, receiver = simulate(plan, Costs(forward=1.0, transfer=10.0)).stages
    of_send = {span.instruction.op: (span.start, span.end) for span in sender.spans}
    of_receive = {span.instruction.op: (span.start, span.end) for span in receiver.spans}
    assert of_send["PostSendActivation"] == of_send["WaitSendActivation"] == (1.0, 11.0)
    assert of_send["GroupEnd"] == (1.0, 11.0)
    assert of_receive["PostRecvActivation"] == of_receive["WaitRecvActivation"] == (0.0, 11.0)
