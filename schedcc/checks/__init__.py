"""Checks: pure functions with one question each, over a plan that may come from anywhere.

Every check is told M and S by the plan's header, never infers them from the program that it
doubts, and lists all its findings. None may assume that another one has passed.
"""

from collections.abc import Callable, Iterator

from schedcc.checks.buffers import check_buffers
from schedcc.checks.channels import check_channels
from schedcc.checks.collectives import check_collectives
from schedcc.checks.coverage import check_coverage
from schedcc.checks.splits import check_splits
from schedcc.checks.structure import check_stages, check_structure
from schemas import Finding, PipelinePlan, PlanHeader, StageProgram

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
)
"""Questions that need the programs of all stages."""

__all__ = ["PIPELINE_CHECKS", "PROGRAM_CHECKS", "PipelineCheck", "ProgramCheck"]
