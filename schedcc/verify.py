"""Verification: all questions about a plan, answered on one of two roads.

- Up to `GRAPH_LIMIT` instructions, each check walks the plan, and networkx looks for cycles.
- Beyond it, screens over arrays look for anything wrong, a timetable proves freedom from deadlock
  and speed, or else a topological sort decides. Only a plan that does not pass is walked by the
  checks, which explain what is wrong with it.

Both give the same verdict on everything; a test holds them to it.
"""

from collections.abc import Callable, Iterator

import numpy as np

from schedcc.checks import PIPELINE_CHECKS, PROGRAM_CHECKS
from schedcc.checks.deadlock import check_deadlock
from schedcc.checks.latency import check_latency
from schedcc.checks.structure import check_stages, check_structure
from schedcc.dependencies import dependencies
from schedcc.graph import describe, networkx_graph, plan_dependencies
from schedcc.levels import levels
from schedcc.screens import PIPELINE_SCREENS, PROGRAM_SCREENS
from schedcc.table import PlanTable
from schedcc.times import Road, road_for
from schedcc.timetable import proven, unit_cost
from schemas import (
    Finding,
    PipelinePlan,
    PlanHeader,
    Report,
    StagePlan,
    StageProgram,
    TransportModel,
)


def _names(checks: tuple[Callable[..., object], ...]) -> tuple[str, ...]:
    return tuple(function.__name__.removeprefix("check_") for function in checks)


PROGRAM_QUESTIONS = _names(PROGRAM_CHECKS)
PIPELINE_QUESTIONS = (
    *PROGRAM_QUESTIONS,
    *_names((*PIPELINE_CHECKS, check_deadlock, check_latency)),
)
"""Names of all questions; a report on one stage has the first ones only."""


def check(
    plan: PipelinePlan | StagePlan,
    transport: TransportModel | None = None,
    *,
    road: Road | None = None,
) -> Report:
    """Verify a plan.

    A `PipelinePlan` is asked everything. A `StagePlan` is asked what one stage alone can answer;
    whether its transfers meet their counterparts is not among it, as `Report.checks` shows.

    Args:
        plan: A plan from anywhere.
        transport: What its transfers may rely on; default: the strictest model, under which a
            sound plan is sound everywhere.
        road: How to come to the verdict; default: by the size of the plan.

    Returns:
        A report with every finding of every check; `Report.ok` if none is an error.
    """
    programs = (plan.program,) if isinstance(plan, StagePlan) else plan.programs
    road = road or road_for(sum(len(step) for p in programs for step in p.steps))
    if isinstance(plan, StagePlan):
        passed = road == "arrays" and _programs_pass(PlanTable.of(plan, programs))
        findings = [] if passed else list(_check_programs(plan, programs))
        return Report(checks=PROGRAM_QUESTIONS, findings=tuple(findings))
    transport = transport or TransportModel()
    found = (_by_graph if road == "graph" else _by_arrays)(plan, transport)
    return Report(checks=PIPELINE_QUESTIONS, transport=transport, findings=tuple(found))


def _by_graph(plan: PipelinePlan, transport: TransportModel) -> Iterator[Finding]:
    yield from _check_pipeline(plan)
    graph = plan_dependencies(plan, transport)
    waits = networkx_graph(graph)
    describe(waits, plan)
    yield from check_deadlock(waits)
    yield from check_latency(plan, graph.table, transport, "graph")


def _by_arrays(plan: PipelinePlan, transport: TransportModel) -> Iterator[Finding]:
    table = PlanTable.of(plan, plan.programs)
    passed = _pipeline_passes(plan, table)
    if not passed:
        yield from _check_pipeline(plan)
    if passed and proven(table, transport):
        return
    graph = dependencies(table, transport) if passed else plan_dependencies(plan, transport)
    stuck = levels(graph, unit_cost(graph).astype(np.float64)).stuck
    if stuck.any():
        waits = networkx_graph(graph, stuck)
        describe(waits, plan)
        yield from check_deadlock(waits)
    yield from check_latency(plan, graph.table, transport, "arrays")


def _pipeline_passes(plan: PipelinePlan, table: PlanTable) -> bool:
    return (
        not any(check_stages(plan))
        and _programs_pass(table)
        and all(screen(table) for screen in PIPELINE_SCREENS)
    )


def _programs_pass(table: PlanTable) -> bool:
    return all(screen(table) for screen in PROGRAM_SCREENS) and epilogues_hold(table)


def epilogues_hold(table: PlanTable) -> bool:
    """Does `check_structure` find nothing in the epilogues? Most of them are alike."""
    alike = {
        (stage_id == 0, stage_id == table.stages - 1, epilogue): stage_id
        for stage_id, epilogue in zip(table.stage_ids.tolist(), table.epilogues, strict=True)
    }
    header = PlanHeader(format="", micro_batches=table.micro_batches, stages=table.stages)
    programs = (
        StageProgram(stage_id=stage_id, steps=(), epilogue=epilogue)
        for (_, _, epilogue), stage_id in alike.items()
    )
    return not any(finding for program in programs for finding in check_structure(header, program))


def _check_pipeline(plan: PipelinePlan) -> Iterator[Finding]:
    yield from _check_programs(plan, plan.programs)
    for pipeline_check in PIPELINE_CHECKS:
        yield from pipeline_check(plan)


def _check_programs(header: PlanHeader, programs: tuple[StageProgram, ...]) -> Iterator[Finding]:
    for program_check in PROGRAM_CHECKS:
        for program in programs:
            yield from program_check(header, program)
