"""When the instructions of a plan start and end, and how plans compare."""

from typing import Literal

from pydantic import Field, model_validator

from schemas.base import Frozen
from schemas.costs import Costs
from schemas.instructions import Instruction
from schemas.transport import TransportModel


class Span(Frozen):
    """When one instruction ran, in seconds since the start of the plan.

    The span of a post lasts from the post to the end of its transfer, and that of a `GroupEnd` to
    the end of the last transfer of its group; the rank goes on at their starts.
    """

    step: int | None
    instruction: Instruction = Field(discriminator="op")
    start: float
    end: float

    @model_validator(mode="after")
    def _forward_in_time(self) -> "Span":
        assert self.start <= self.end
        return self


class StageTimeline(Frozen):
    """One rank's part of a timeline."""

    stage_id: int | None
    """The rank's stage; `None` where ranks and stages are not the same."""
    rank: int
    spans: tuple[Span, ...]
    busy: float
    """Seconds in forwards."""
    idle: float
    """Seconds of the makespan without a forward."""
    peak_bytes: int
    """The most bytes of received and not yet sent activations held at once."""


class Timeline(Frozen):
    """Start and end of every instruction of a plan under given costs."""

    costs: Costs
    makespan: float
    """Seconds from the first start to the last end."""
    bubble: float
    """The fraction of the ranks' time that is idle."""
    ideal: float
    """What no plan with this placement can be faster than: of the slowest rank, the stages before
    its first, its own forwards of all micro-batches, and the stages behind its last. With equal
    stages and one on each rank, `(M + S - 1)` forwards. Where micro-batches differ, the forwards of
    the first one count before a rank, and those of the last one behind it."""
    ideal_bubble: float
    """The bubble of equal stages without transfers: `(S - 1) / (M + S - 1)` with one a rank."""
    stages: tuple[StageTimeline, ...]


class ComparedSchedule(Frozen):
    """One schedule's figures for M micro-batches, S stages and R ranks."""

    name: str
    steps: int
    buffers: str
    """Buffers of a stage, from the first stage to the last."""
    ideal_bubble: float
    """Idle fraction with equal stages, without transfers."""
    makespan: float | None
    """Seconds, simulated; `None` for a schedule that is not compiled here."""
    bubble: float | None
    """Idle fraction, simulated."""


class Comparison(Frozen):
    """Schedules side by side, as `schedcc compare --json` prints them."""

    format: Literal["schedcc.comparison/1"] = "schedcc.comparison/1"
    micro_batches: int
    stages: int
    ranks: int
    schedule: str
    costs: Costs
    transport: TransportModel
    schedules: tuple[ComparedSchedule, ...]
