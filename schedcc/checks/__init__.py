"""Checks: pure functions with one question each, over a plan that may come from anywhere.

Every check is told M and S by the plan's header, never infers them from the program that it
doubts, and lists all its findings. None may assume that another one has passed.
"""

from collections.abc import Callable, Iterator

import networkx as nx

from schedcc.checks.buffers import check_buffers
from schedcc.checks.channels import check_channels
from schedcc.checks.collectives import check_collectives
from schedcc.checks.coverage import check_coverage
from schedcc.checks.deadlock import check_deadlock
from schedcc.checks.splits import check_splits
from schedcc.checks.structure import check_stages, check_structure
from schedcc.graph import Event, dependency_graph
from schemas import (
    Finding,
    PipelinePlan,
    PlanHeader,
    Report,
    StagePlan,
    StageProgram,
    TransportModel,
)

ProgramCheck = Callable[[PlanHeader, StageProgram], Iterator[Finding]]
PipelineCheck = Callable[[PipelinePlan], Iterator[Finding]]
GraphCheck = Callable[[PipelinePlan, "nx.DiGraph[Event]"], Iterator[Finding]]

PROGRAM_CHECKS: tuple[ProgramCheck, ...] = (
    check_structure,
    check_coverage,
    check_buffers,
    check_splits,
)
"""Questions that one stage's program can answer alone."""

PIPELINE_CHECKS: tuple[PipelineCheck, ...] = (
    check_stages,
    check_channels,
    check_collectives,
)
"""Questions that need the programs of all stages."""

GRAPH_CHECKS: tuple[GraphCheck, ...] = (check_deadlock,)
"""Questions about the dependency graph, which depends on the transport."""


def check(plan: PipelinePlan | StagePlan, transport: TransportModel | None = None) -> Report:
    """Verify a plan.

    A `PipelinePlan` is asked everything. A `StagePlan` is asked what one stage alone can answer;
    whether its transfers meet their counterparts is not among it, as `Report.checks` shows.

    Args:
        plan: A plan from anywhere.
        transport: What its transfers may rely on; default: the strictest model, under which a
            sound plan is sound everywhere.

    Returns:
        A report with every finding of every check; `Report.ok` if none is an error.
    """
    if isinstance(plan, StagePlan):
        findings = _check_programs(plan, (plan.program,))
        return Report(checks=_names(PROGRAM_CHECKS), findings=tuple(findings))
    transport = transport or TransportModel()
    return check_with_graph(plan, transport, dependency_graph(plan, transport))


def check_with_graph(
    plan: PipelinePlan, transport: TransportModel, graph: "nx.DiGraph[Event]"
) -> Report:
    """`check`, for a caller that has the plan's dependency graph under `transport` already."""
    findings = _check_programs(plan, plan.programs)
    findings += [f for pipeline_check in PIPELINE_CHECKS for f in pipeline_check(plan)]
    findings += [f for graph_check in GRAPH_CHECKS for f in graph_check(plan, graph)]
    names = _names(PROGRAM_CHECKS) + _names(PIPELINE_CHECKS) + _names(GRAPH_CHECKS)
    return Report(checks=names, transport=transport, findings=tuple(findings))


def _check_programs(header: PlanHeader, programs: tuple[StageProgram, ...]) -> list[Finding]:
    return [
        finding
        for program_check in PROGRAM_CHECKS
        for program in programs
        for finding in program_check(header, program)
    ]


def _names(checks: tuple[Callable[..., object], ...]) -> tuple[str, ...]:
    return tuple(function.__name__.removeprefix("check_") for function in checks)


__all__ = ["GRAPH_CHECKS", "PIPELINE_CHECKS", "PROGRAM_CHECKS", "check", "check_with_graph"]
