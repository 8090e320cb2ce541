"""Questions: each decided on arrays and explained in words, by one value that holds both.

`holds` looks at a table of any size, with arrays and without words. `explain` walks the programs,
lists every finding, and may not assume that another question was answered well. If the `holds` of
all questions say yes, `explain` has nothing to say; `holds` may say no where it does not know, so
one that nobody has found arrays for is `undecided`: its plans are walked, whatever their size.

A table may be of some neighbouring stages only (see `schedcc.certify`): then `holds` answers for
what is in it, and leaves out what leads elsewhere.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from schedcc.analysis.order import Order
from schedcc.analysis.times import Backend
from schedcc.table.table import PlanTable
from schemas import Finding, PipelinePlan, PlanHeader, StageProgram


@dataclass(frozen=True)
class ProgramQuestion:
    """A question that one stage's program can answer alone."""

    name: str
    """As in `Report.checks`."""
    holds: Callable[[PlanTable], bool]
    explain: Callable[[PlanHeader, StageProgram], Iterator[Finding]]


@dataclass(frozen=True)
class PipelineQuestion:
    """A question that needs the programs of several stages."""

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


Question = ProgramQuestion | PipelineQuestion | OrderQuestion


def undecided(_: object) -> bool:
    """A `holds` that never knows."""
    return False
