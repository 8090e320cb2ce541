"""Whether a recorded run followed a plan, as `schedcc conform --json` prints it."""

from typing import Literal

from pydantic import computed_field

from schemas.base import Frozen, Verdict


class Deviation(Frozen):
    """One thing that a recording shows and the plan does not allow."""

    code: Literal["sequence", "order", "recording"]
    """Other instructions than the plan's; an order in time that its dependencies rule out; or a
    recording that cannot show what was executed."""
    message: str
    rank: int | None = None
    run: int | None = None
    step: int | None = None
    """The step of the culprit; `None` in the epilogue and where no single step is to blame."""

    def __str__(self) -> str:
        named = (("rank", self.rank), ("run", self.run), ("step", self.step))
        place = ", ".join(f"{name} {number}" for name, number in named if number is not None)
        return f"{self.code}: {place + ': ' if place else ''}{self.message}"


class Conformance(Verdict):
    """The deviations of a recording from a plan, and what was compared to find them."""

    format: Literal["schedcc.conformance/1"] = "schedcc.conformance/1"
    deviations: tuple[Deviation, ...]
    runs: tuple[int, ...]
    """The runs that were compared."""
    instructions: int
    """Instructions that were compared."""
    notes: tuple[str, ...]
    """What limits the comparison: runs that were cut short, orders that could not be told."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ok(self) -> bool:
        """Whether everything that was compared followed the plan."""
        return not self.deviations
