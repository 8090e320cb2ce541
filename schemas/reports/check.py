"""What a check of a plan found."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Literal

from pydantic import computed_field

from schemas.base import Count, Frozen, Verdict
from schemas.display import Displayed
from schemas.transport import TransportModel


class FindingCode(StrEnum):
    """The question that a plan failed to answer well."""

    STRUCTURE = "structure"
    COVERAGE = "coverage"
    CHANNEL = "channel"
    BUFFER = "buffer"
    DEADLOCK = "deadlock"
    LATENCY = "latency"


class Finding(Frozen):
    """One flaw of a plan: its kind, its culprit, and the values that show it."""

    code: FindingCode
    message: str
    severity: Literal["error", "warning"] = "error"
    stage_id: int | None = None
    """The stage of the culprit, if it is one stage's."""
    rank: int | None = None
    """The rank of the culprit, where ranks and stages are not the same."""
    step: int | None = None
    """The step of the culprit; `None` in the epilogue and where no single step is to blame."""
    count: Count = 1
    """Flaws that this stands for: beyond a number, those of one kind are counted, not listed."""

    def __str__(self) -> str:
        numbers = (("rank", self.rank), ("stage", self.stage_id), ("step", self.step))
        place = ", ".join(f"{name} {number}" for name, number in numbers if number is not None)
        return f"{self.code}: {place + ': ' if place else ''}{self.message}"


class Report(Verdict, Displayed):
    """The findings of all checks that were run."""

    checks: tuple[str, ...]
    """Names of the checks that were run, so that silence can be told from not asking."""
    transport: TransportModel | None = None
    """What the plan's transfers were assumed to rely on; `None` if nothing was asked of them."""
    findings: tuple[Finding, ...] = ()

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ok(self) -> bool:
        """Whether the plan is sound: no finding is an error."""
        return next(self.errors(), None) is None

    def errors(self) -> Iterator[Finding]:
        """The findings that make the plan unsound."""
        return (finding for finding in self.findings if finding.severity == "error")
