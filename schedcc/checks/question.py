"""Questions: each decided on arrays and explained in words, by one value that holds both.

`holds` looks at a table of any size, with arrays and without words. `explain` walks the programs,
lists every finding, and may not assume that another question was answered well. If the `holds` of
all questions say yes, `explain` has nothing to say; `holds` may say no where it does not know, so
one that nobody has found arrays for is `undecided`: its plans are walked, whatever their size.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from schedcc.analysis.order import Order
from schedcc.analysis.times import Backend
from schedcc.table.table import PlanTable
from schemas import Finding, FindingCode, Instruction, PipelinePlan, PlanHeader, RankProgram


@dataclass(frozen=True)
class HeaderQuestion:
    """A question about what a plan is for, that its header can answer."""

    name: str
    """As in `Report.checks`."""
    holds: Callable[[PlanTable], bool]
    explain: Callable[[PlanHeader], Iterator[Finding]]


@dataclass(frozen=True)
class ProgramQuestion:
    """A question that one rank's program can answer alone."""

    name: str
    holds: Callable[[PlanTable], bool]
    explain: Callable[[PlanHeader, RankProgram], Iterator[Finding]]


@dataclass(frozen=True)
class PipelineQuestion:
    """A question that needs the programs of several ranks."""

    name: str
    holds: Callable[[PlanTable], bool]
    explain: Callable[[PipelinePlan], Iterator[Finding]]


@dataclass(frozen=True)
class OrderQuestion:
    """A question about what waits for what, under a model of the transport.

    Its `holds` is asked only where those of all other questions have said yes.
    """

    name: str
    holds: Callable[[Order], bool]
    explain: Callable[[PipelinePlan, Order, Backend], Iterator[Finding]]


Question = HeaderQuestion | ProgramQuestion | PipelineQuestion | OrderQuestion


def undecided(_: object) -> bool:
    """A `holds` that never knows."""
    return False


def finding(
    code: FindingCode,
    header: PlanHeader,
    rank: int,
    message: str,
    *,
    stage_id: int | None = None,
    step: int | None = None,
) -> Finding:
    """A finding about a rank's program, which names the rank where ranks are not stages."""
    if header.is_one_to_one:
        return Finding(code=code, message=message, stage_id=rank, step=step)
    return Finding(code=code, message=message, stage_id=stage_id, rank=rank, step=step)


def in_full(instruction: Instruction, unit: str) -> str:
    """An instruction in a message that says who executes it; of a rank, with its stage."""
    stage_id = getattr(instruction, "stage", None)
    return (
        f"{instruction}"
        if unit == "stage" or stage_id is None
        else f"{instruction} of stage {stage_id}"
    )
