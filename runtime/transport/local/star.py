"""A star of local channels: all stages of a host agree through one of them.

Collective operations of gloo go through queues and threads of its own, which on a machine with few
processors wait for each other; what stages agree on is small, and each round holds all of them up.
"""

from collections.abc import Mapping

import torch

from runtime.transport.local.receiving import ReceivingEnd
from runtime.transport.local.sending import SendingEnd


class Star:
    """The ends between one stage and the hub, the last stage; or between the hub and all others."""

    def __init__(
        self, rank: int, size: int, ends: Mapping[int, tuple[ReceivingEnd, SendingEnd]]
    ) -> None:
        """Take the ends of `rank`, by peer: what comes from it, and what goes to it."""
        self.hub = size - 1
        self._rank, self._size, self._ends = rank, size, ends

    def all_gather(self, mine: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's tensor, all of one size, by rank.

        Raises:
            LocalChannelError: a stage is gone.
        """
        everyone = torch.empty((self._size, mine.numel()), dtype=torch.uint8)
        everyone[self._rank] = mine
        if self._rank == self.hub:
            arriving = [end.begin([everyone[peer]]) for peer, (end, _) in self._ends.items()]
            for receiving in arriving:
                receiving.wait()
        else:
            _, to_hub = self._ends[self.hub]
            to_hub.begin([mine]).wait()
        self.broadcast(everyone.view(-1))
        return list(everyone.unbind())

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Hand the hub's tensor, uint8 in one dimension, to all ranks.

        Raises:
            LocalChannelError: a stage is gone.
        """
        if self._rank == self.hub:
            leaving = [end.begin([tensor]) for _, end in self._ends.values()]
            for sending in leaving:
                sending.wait()
        else:
            from_hub, _ = self._ends[self.hub]
            from_hub.begin([tensor]).wait()
