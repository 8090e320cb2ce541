"""Checks: pure functions with one question each, over a plan that may come from anywhere.

Every check is told M and S by the plan's header, never infers them from the program that it
doubts, and lists all its findings. None may assume that another one has passed.
"""

from collections.abc import Callable, Iterator

from schedcc.checks.buffers import check_buffers
from schedcc.checks.channels import check_channels
from schedcc.checks.collectives import check_collectives
from schedcc.checks.coverage import check_coverage
from schedcc.checks.deadlock import check_deadlock
from schedcc.checks.splits import check_splits
from schedcc.checks.structure import check_stages, check_structure
from schemas import Finding, PipelinePlan, PlanHeader, Report, StagePlan, StageProgram

ProgramCheck = Callable[[PlanHeader, StageProgram], Iterator[Finding]]
PipelineCheck = Callable[[PipelinePlan], Iterator[Finding]]

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
    check_deadlock,
)
"""Questions that need the programs of all stages."""


def check(plan: PipelinePlan | StagePlan) -> Report:
    """Verify a plan.

    A `PipelinePlan` is asked everything. A `StagePlan` is asked what one stage alone can answer;
    whether its transfers meet their counterparts is not among it, as `Report.checks` shows.

    Returns:
        A report with every finding of every check; `Report.ok` if none is an error.
    """
    programs = (plan.program,) if isinstance(plan, StagePlan) else plan.programs
    findings = [
        finding
        for program_check in PROGRAM_CHECKS
        for program in programs
        for finding in program_check(plan, program)
    ]
    asked: list[ProgramCheck | PipelineCheck] = list(PROGRAM_CHECKS)
    if isinstance(plan, PipelinePlan):
        findings += [f for pipeline_check in PIPELINE_CHECKS for f in pipeline_check(plan)]
        asked += PIPELINE_CHECKS
    names = tuple(function.__name__.removeprefix("check_") for function in asked)
    return Report(checks=names, findings=tuple(findings))


__all__ = ["PIPELINE_CHECKS", "PROGRAM_CHECKS", "PipelineCheck", "ProgramCheck", "check"]
