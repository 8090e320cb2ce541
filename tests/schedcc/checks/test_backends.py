"""networkx and arrays come to the same verdict, the same findings and the same timeline."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedcc import Costs, Outcome, TransportModel, check, compile_pipeline, compile_stage
from schedcc.analysis.times import GRAPH_LIMIT
from schedcc.simulation.simulate import timeline
from schedcc.table.table import PlanTable
from schedcc.testing.mutations import random_mutant
from schedcc.testing.plans import pipeline
from schedcc.testing.strategies import at_corners, outcomes, random_transfers, sizes
from schedcc.verify import locally_sound, verdict
from schemas import PipelinePlan, Report

MODELS = st.builds(
    TransportModel,
    queue=st.sampled_from(["stage", "channel"]),
    buffered_sends=st.integers(0, 2),
    step_barrier=st.booleans(),
)


def both(plan: PipelinePlan, model: TransportModel) -> tuple[Report, Report]:
    return verdict(plan, model, "networkx"), verdict(plan, model, "arrays")


def said(report: Report) -> Counter:
    """What a report says, but for which of several shortest circles it shows."""
    return Counter((f.code, f.stage_id, f.step, f.message.split("\n")[0]) for f in report.findings)


@at_corners(overlap=True, model=TransportModel(), outcome=Outcome())
@settings(max_examples=60)
@given(size=sizes(8, 6), overlap=st.booleans(), model=MODELS, outcome=outcomes())
def test_what_the_compiler_makes_is_sound_on_both(size, overlap, model, outcome):
    plan = compile_pipeline(*size, overlap=overlap, outcome=outcome)
    graph, arrays = both(plan, model)
    assert graph == arrays
    assert not graph.findings


@settings(max_examples=60, deadline=None)
@given(
    size=sizes(6, 5),
    overlap=st.booleans(),
    model=MODELS,
    seed=st.integers(0, 10**9),
    changes=st.integers(1, 2),
    outcome=outcomes(),
)
def test_mutants_get_the_same_findings_on_both(size, overlap, model, seed, changes, outcome):
    random, plan = Random(seed), compile_pipeline(*size, overlap=overlap, outcome=outcome)
    for _ in range(changes):
        plan = random_mutant(plan, random)
    graph, arrays = both(plan, model)
    assert said(graph) == said(arrays)


@settings(max_examples=60, deadline=None)
@given(plan=random_transfers(), model=MODELS)
def test_any_programs_get_the_same_findings_on_both(plan, model):
    graph, arrays = both(plan, model)
    assert said(graph) == said(arrays)


@settings(max_examples=30, deadline=None)
@given(
    size=sizes(8, 5),
    overlap=st.booleans(),
    model=MODELS,
    transfer=st.floats(0, 3),
    forwards=st.lists(st.floats(0, 3), min_size=5, max_size=5),
)
def test_both_give_the_same_timeline(size, overlap, model, transfer, forwards):
    plan = compile_pipeline(*size, overlap=overlap)
    costs = Costs(forward=tuple(forwards[: size[1]]), transfer=transfer)
    graph = timeline(plan, costs, model, "networkx")
    assert graph == timeline(plan, costs, model, "arrays")


def test_a_sound_plan_that_is_not_the_compilers_is_sound_on_both():
    lazily = pipeline("L0 F0 S0 L1 F1 S1", "L0 R0 F0 L1 R1 F1", micro_batches=2)
    graph, arrays = both(lazily, TransportModel())
    assert graph.ok
    assert graph == arrays


def test_numbers_beyond_every_machine_are_findings_on_both():
    plan = pipeline(f"L0 F0 S0@{10**30}:{-(10**25)}", f"L0 R0 F{10**40}", micro_batches=10**20)
    graph, arrays = both(plan, TransportModel())
    assert not graph.ok
    assert said(graph) == said(arrays)


@pytest.mark.parametrize("stage_id", [0, 1, 2])
def test_one_stage_is_asked_the_same_on_both(stage_id):
    sound = compile_stage(9, 3, stage_id, overlap=True)
    spoilt = sound.model_copy(update={"steps": sound.steps[:-1]})
    for plan, ok in ((sound, True), (spoilt, False)):
        graph, arrays = verdict(plan, None, "networkx"), verdict(plan, None, "arrays")
        assert graph == arrays
        assert graph.ok == ok


def test_a_large_plan_passes_without_a_walk_and_a_flaw_in_it_is_found():
    plan = compile_pipeline(300, 4, overlap=True)
    assert sum(len(step) for p in plan.programs for step in p.steps) > GRAPH_LIMIT
    assert locally_sound(PlanTable.of(plan, plan.programs), alone=False)
    first, *others = plan.programs
    steps = (*first.steps[:200], first.steps[200][::-1], *first.steps[201:])
    spoilt = first.model_copy(update={"steps": steps})
    findings = check(plan.model_copy(update={"programs": (spoilt, *others)})).findings
    assert {finding.step for finding in findings} <= {200, 201, 202}
    assert {finding.code.value for finding in findings} == {"buffer"}
