"""What a plan costs in time: the assumptions, and what follows from them."""

from typing import Annotated

from pydantic import Field, model_validator

from schemas.base import Frozen
from schemas.instructions import Instruction

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Costs(Frozen):
    """How long things take, in seconds; what is not named takes no time.

    A transfer takes `transfer` seconds, plus `activation_bytes / bandwidth` where a bandwidth is
    given: a constant, or the usual latency and bandwidth model.
    """

    forward: Seconds | tuple[Seconds, ...] = 1.0
    """Of one micro-batch: on every stage, or on each."""
    transfer: Seconds = 0.0
    """Of one activation, or the latency of its transfer."""
    activation_bytes: int = Field(default=0, ge=0, lt=2**63)
    """Size of one activation."""
    bandwidth: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Bytes per second between neighbours; `None`: without limit."""

    @property
    def transfer_seconds(self) -> float:
        """Time of one transfer, once both sides are ready."""
        return self.transfer + (self.activation_bytes / self.bandwidth if self.bandwidth else 0.0)

    def forward_seconds(self, stages: int) -> tuple[float, ...]:
        """Time of a forward on each of `stages` stages.

        Raises:
            ValueError: there are costs for another number of stages.
        """
        if not isinstance(self.forward, tuple):
            return (self.forward,) * stages
        if len(self.forward) != stages:
            raise ValueError(
                f"forward lists {len(self.forward)} costs, needed a single number or a list of "
                f"{stages} (stages={stages})"
            )
        return self.forward


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
    stages and one on each rank, `(M + S - 1)` forwards."""
    ideal_bubble: float
    """The bubble of equal stages without transfers: `(S - 1) / (M + S - 1)` with one a rank."""
    stages: tuple[StageTimeline, ...]
