"""All questions about a plan that may come from anywhere, in the order of their findings.

Every question is told M, S and R by the plan's header, never infers them from the program that it
doubts, and lists all its findings. `QUESTIONS` is the only list: `schedcc.check`, `check_schedule`
and `Report.checks` go by it.
"""

from schedcc.checks.buffers import BUFFERS
from schedcc.checks.channels import CHANNELS
from schedcc.checks.collectives import COLLECTIVES
from schedcc.checks.coverage import COVERAGE
from schedcc.checks.deadlock import DEADLOCK
from schedcc.checks.latency import LATENCY
from schedcc.checks.placement import PLACEMENT
from schedcc.checks.question import Question
from schedcc.checks.ranks import RANKS
from schedcc.checks.splits import SPLITS
from schedcc.checks.structure import STRUCTURE

QUESTIONS: tuple[Question, ...] = (
    PLACEMENT,
    STRUCTURE,
    COVERAGE,
    BUFFERS,
    SPLITS,
    RANKS,
    CHANNELS,
    COLLECTIVES,
    DEADLOCK,
    LATENCY,
)

__all__ = ["QUESTIONS"]
