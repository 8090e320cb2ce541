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
    the end of the last transfer of its group; the stage goes on at their starts.
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
    """One stage's part of a timeline."""

    stage_id: int
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
    """The fraction of the stages' time that is idle."""
    ideal: float
    """The sum of all stages' forwards and `M - 1` more of the slowest: no plan can be faster. With
    equal stages, `(M + S - 1)` forwards. Where micro-batches differ, the most of any stage: all its
    forwards, those of the first micro-batch before it, and those of the last one behind it."""
    ideal_bubble: float
    """`(S - 1) / (M + S - 1)`, the bubble of equal stages without transfers."""
    stages: tuple[StageTimeline, ...]


class ComparedSchedule(Frozen):
    """One schedule's figures for M micro-batches and S stages."""

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
    costs: Costs
    transport: TransportModel
    schedules: tuple[ComparedSchedule, ...]
