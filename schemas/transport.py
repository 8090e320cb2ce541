"""What a plan's transfers may rely on."""

from typing import Literal

from pydantic import Field

from schemas.base import Frozen


class TransportModel(Frozen):
    """How strict the transport is that a plan is checked and simulated for.

    The default is the strictest: what is free of deadlock there is free of deadlock under every
    other model. The reverse does not hold.
    """

    queue: Literal["stage", "channel"] = "stage"
    """Transfers end in issue order per stage (one communicator, one stream), or only per channel
    (a communicator for each)."""
    buffered_sends: int = Field(default=0, ge=0)
    """Messages of a channel that may wait for their receive without holding up the sender;
    0: a send ends only with its receive (rendezvous)."""

    def __str__(self) -> str:
        ending = "" if self.buffered_sends == 1 else "s"
        buffered = f"{self.buffered_sends} buffered send{ending}"
        return f"one queue per {self.queue}, {buffered if self.buffered_sends else 'rendezvous'}"
