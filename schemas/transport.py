"""What a plan's transfers may rely on."""

from typing import Literal

from pydantic import Field

from schemas.base import Frozen

Queues = Literal["stage", "channel"]
"""Which transfers end in the order in which they were posted: a stage's, or a channel's."""


class TransportModel(Frozen):
    """How strict the transport is that a plan is checked and simulated for.

    The default is the strictest of transports: what is free of deadlock there is free of deadlock
    under every other one. The reverse does not hold.
    """

    queue: Queues = "stage"
    """Transfers end in issue order per stage (one communicator, one stream), or only per channel
    (a communicator for each)."""
    buffered_sends: int = Field(default=0, ge=0)
    """Messages of a channel that may wait for their receive without holding up the sender;
    0: a send ends only with its receive (rendezvous)."""

    step_barrier: bool = False
    """Whether all stages meet after each step. A plan whose steps are atomic (the blocking form)
    runs with such barriers, too; one more demand, where the other two fields are allowances."""

    def __str__(self) -> str:
        ending = "" if self.buffered_sends == 1 else "s"
        buffered = f"{self.buffered_sends} buffered send{ending}" if self.buffered_sends else ""
        barrier = ", a barrier between steps" if self.step_barrier else ""
        return f"one queue per {self.queue}, {buffered or 'rendezvous'}{barrier}"
