"""Timetables prove the compiler's plans, whatever their size, and prove nothing of bad ones."""

from random import Random

import networkx as nx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from schedcc import compile_pipeline, dependency_graph
from schedcc.analysis.graph import plan_dependencies
from schedcc.analysis.levels import levels
from schedcc.analysis.order import Order
from schedcc.analysis.timetable import UNITS_PER_STEP, unit_cost
from schedcc.table.table import PlanTable
from schedcc.testing.mutations import random_mutant
from schedcc.testing.strategies import at_corners, random_transfers, sizes
from schedcc.verify import locally_sound, verdict
from schemas import TransportModel

EVERY_MODEL = [
    TransportModel(queue=queue, buffered_sends=buffered)
    for queue in ("stage", "channel")
    for buffered in (0, 1, 2)
]


@at_corners(overlap=True)
@settings(max_examples=25, deadline=None)
@given(size=sizes(40, 12), overlap=st.booleans())
def test_a_timetable_proves_every_plan_of_the_compiler_under_every_model(size, overlap):
    table = PlanTable.of(
        plan := compile_pipeline(*size, overlap=overlap),
        plan.programs,
    )
    assert all(Order(table, model).proven for model in EVERY_MODEL)


@at_corners()
@settings(max_examples=30, deadline=None)
@given(size=sizes(20, 9))
def test_steps_of_the_blocking_form_are_atomic(size):
    plan = compile_pipeline(*size)
    barriers = TransportModel(step_barrier=True)
    assert Order(PlanTable.of(plan, plan.programs), barriers).proven
    assert verdict(plan, barriers, "networkx").ok


@settings(max_examples=50, deadline=None)
@given(size=sizes(6, 5), overlap=st.booleans(), seed=st.integers(0, 10**9))
def test_what_a_timetable_proves_is_neither_stuck_nor_slow(size, overlap, seed):
    plan = random_mutant(compile_pipeline(*size, overlap=overlap), Random(seed))
    table = PlanTable.of(plan, plan.programs)
    if locally_sound(table, alone=False) and Order(table, TransportModel()).proven:
        codes = {finding.code.value for finding in verdict(plan, None, "networkx").findings}
        assert not codes & {"deadlock", "latency"}


def test_the_blocking_form_takes_all_that_its_steps_allow_and_the_overlapped_form_less():
    graph = plan_dependencies(compile_pipeline(10, 5), TransportModel())
    blocking = levels(graph, unit_cost(graph).astype(float)).seconds.max()
    graph = plan_dependencies(compile_pipeline(10, 5, overlap=True), TransportModel())
    overlapped = levels(graph, unit_cost(graph).astype(float)).seconds.max()
    assert overlapped < blocking <= UNITS_PER_STEP * (10 + 5 - 1)


@settings(max_examples=60, deadline=None)
@given(plan=random_transfers(), seed=st.integers(0, 10**6))
def test_levels_are_longest_paths_and_stuck_is_what_comes_after_a_circle(plan, seed):
    graph = plan_dependencies(plan, TransportModel())
    cost = np.random.default_rng(seed).integers(0, 5, graph.events).astype(float)
    found = levels(graph, cost)
    waits = nx.DiGraph()
    waits.add_nodes_from(range(graph.events))
    for edges in graph.edges:
        waits.add_edges_from(zip(edges.source.tolist(), edges.target.tolist(), strict=True))
    circles = [n for knot in nx.strongly_connected_components(waits) if len(knot) > 1 for n in knot]
    circles += list(nx.nodes_with_selfloops(waits))
    behind = set(circles).union(*(nx.descendants(waits, node) for node in circles))
    assert set(np.flatnonzero(found.stuck).tolist()) == behind
    for event in nx.topological_sort(waits.subgraph(set(waits) - behind)):
        before = max((found.seconds[p] for p in waits.predecessors(event)), default=0.0)
        assert found.seconds[event] == before + cost[event]


def test_the_graph_that_a_user_gets_has_the_same_edges():
    plan = compile_pipeline(3, 3, overlap=True)
    graph = plan_dependencies(plan, TransportModel())
    pairs = {p for e in graph.edges for p in zip(e.source.tolist(), e.target.tolist(), strict=True)}
    assert dependency_graph(plan).number_of_edges() == len(pairs)
