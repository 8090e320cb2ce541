"""The dependency graph: its nodes, the reason of each edge, and when it has a cycle."""

from itertools import permutations

import networkx as nx
import pytest
from hypothesis import given, settings

from schedcc import compile_pipeline, dependency_graph
from schedcc.analysis.graph import Event
from schedcc.testing.plans import pipeline
from schedcc.testing.strategies import at_corners, random_transfers, sizes
from schemas import PipelinePlan
from tests.support.plans import deadlocks


def edges(plan: PipelinePlan) -> set[str]:
    """Every edge as `stage.offset start|end -> stage.offset start|end  why`."""
    graph = dependency_graph(plan)
    return {
        f"{a.rank}.{a.offset} {a.moment} -> {b.rank}.{b.offset} {b.moment}  {why}"
        for a, b, why in graph.edges(data="why")
    }


@at_corners()
@given(size=sizes(6, 5))
def test_nodes_are_the_starts_and_ends_of_all_instructions(size):
    plan = compile_pipeline(*size)
    expected = {
        Event(program.rank, placed.offset, moment): (placed.instruction, placed.step)
        for program in plan.programs
        for placed in program.placed()
        for moment in ("start", "end")
    }
    nodes = dependency_graph(plan).nodes(data=True)
    assert {n: (data["instruction"], data["step"]) for n, data in nodes} == expected


@at_corners()
@given(size=sizes(6, 5))
def test_compiled_plans_have_no_cycle_and_a_reason_for_every_edge(size):
    graph = dependency_graph(compile_pipeline(*size))
    assert nx.is_directed_acyclic_graph(graph)
    reasons = {why for _, _, why in graph.edges(data="why")}
    stages = size[1]
    several = {"data", "rendezvous", "collective"} if stages > 1 else set()
    assert reasons == {"program"} | several


def test_a_stage_alone_has_only_its_program():
    assert edges(pipeline("L0 F0")) == {
        "0.0 start -> 0.0 end  program",
        "0.0 end -> 0.1 start  program",
        "0.1 start -> 0.1 end  program",
    }


def test_the_two_ends_of_a_transfer_wait_for_each_others_start():
    assert edges(pipeline("S0", "R0")) == {
        "0.0 start -> 0.0 end  program",
        "1.0 start -> 1.0 end  program",
        "0.0 start -> 1.0 end  data",
        "1.0 start -> 0.0 end  rendezvous",
    }


def test_a_program_goes_on_from_the_start_of_a_post_and_its_wait_needs_the_end():
    assert edges(pipeline("s>0 F0 s.0", "r<0 r.0")) == {
        "0.0 start -> 0.0 end  program",
        "0.0 start -> 0.1 start  program",
        "0.1 start -> 0.1 end  program",
        "0.1 end -> 0.2 start  program",
        "0.2 start -> 0.2 end  program",
        "0.0 end -> 0.2 end  rendezvous",
        "1.0 start -> 1.0 end  program",
        "1.0 start -> 1.1 start  program",
        "1.1 start -> 1.1 end  program",
        "1.0 end -> 1.1 end  data",
        "0.0 start -> 1.0 end  data",
        "1.0 start -> 0.0 end  rendezvous",
    }


def test_transfers_end_in_the_order_of_issue_on_both_stages():
    found = edges(pipeline("s>0:1 s>1:2", "R0:0", "R1:0", micro_batches=2))
    assert {edge for edge in found if edge.endswith("queue")} == {
        "0.0 end -> 0.1 end  queue",
        "0.0 end -> 2.0 end  queue",  # the other end of the second transfer ends with it
    }


def test_nobody_leaves_a_collective_before_all_have_entered():
    graph = dependency_graph(compile_pipeline(1, 3))
    broadcasts = [n for n, i in graph.nodes(data="instruction") if i.op == "BroadcastLoss"]
    starts = [event for event in broadcasts if event.moment == "start"]
    ends = [event for event in broadcasts if event.moment == "end"]
    assert len(starts) == len(ends) == 3
    assert all(nx.has_path(graph, start, end) for start in starts for end in ends)
    assert {event.rank for event in starts} == {0, 1, 2}
    assert {graph.nodes[event]["step"] for event in broadcasts} == {None}


def test_a_forward_depends_on_the_load_of_the_first_stage_and_not_on_later_ones():
    graph = dependency_graph(compile_pipeline(4, 3))
    by_name = {(n.rank, str(i), n.moment): n for n, i in graph.nodes(data="instruction")}
    forward = by_name[2, "ForwardPass(micro_batch=0)", "start"]
    assert nx.has_path(graph, by_name[0, "LoadMicroBatch(micro_batch=0)", "end"], forward)
    later = by_name[0, "LoadMicroBatch(micro_batch=3)", "start"]
    assert not nx.has_path(graph, later, forward)


def test_transfers_without_a_counterpart_add_no_edges():
    assert {edge.split()[-1] for edge in edges(pipeline("S0 S0:9", "R0:9"))} == {"program"}


def gets_stuck(plan: PipelinePlan) -> bool:
    """Whether some stage cannot finish, by brute force: start, match and wait until none can."""
    programs = [[i for step in program.steps for i in step] for program in plan.programs]
    position, queues = [0] * len(programs), [[] for _ in programs]
    ended: set[tuple[int, int, bool]] = set()  # (stage, micro-batch, whether it is the send)
    issued: set[tuple[int, int]] = set()
    progress = True
    while progress:
        progress = False
        for stage, program in enumerate(programs):
            if position[stage] == len(program):
                continue
            i = program[position[stage]]
            key = (stage, i.micro_batch, "Send" in i.op)
            if not i.op.startswith("Wait") and (stage, position[stage]) not in issued:
                issued.add((stage, position[stage]))
                queues[stage].append((i.peer, key))
                progress = True
            if i.op.startswith("Post") or key in ended:
                position[stage] += 1
                progress = True
        for a, b in permutations(range(len(programs)), 2):
            if queues[a] and queues[b]:
                (peer_a, (*_, a_sends)), (peer_b, (*_, b_sends)) = queues[a][0], queues[b][0]
                if (peer_a, peer_b, a_sends, b_sends) == (b, a, True, False):
                    ended |= {queues[a].pop(0)[1], queues[b].pop(0)[1]}
                    progress = True
    return position != [len(program) for program in programs]


@settings(max_examples=150)
@given(plan=random_transfers())
def test_there_is_a_cycle_and_a_finding_exactly_when_a_rendezvous_gets_stuck(plan):
    stuck = gets_stuck(plan)
    assert (not nx.is_directed_acyclic_graph(dependency_graph(plan))) == stuck
    assert bool(deadlocks(plan)) == stuck


@pytest.mark.parametrize(
    ("texts", "stuck"),
    [
        (("S0", "R0"), False),
        (("S0:1 R1:1", "S1:0 R0:0"), True),
        (("s>0:1 R1:1 s.0:1", "s>1:0 R0:0 s.1:0"), True),
        (("r<1:1 S0:1 r.1:1", "R0:0 S1:0"), True),
        (("s>0:1 r<1:1 r.1:1 s.0:1", "R0:0 S1:0"), False),
        (("S0:0 R0:0",), True),
    ],
)
def test_the_brute_force_knows_stuck_from_finished(texts, stuck):
    assert gets_stuck(pipeline(*texts, micro_batches=2)) == stuck
