"""Collective operations over local channels: all ranks of a host agree through one of them.

Collective operations of gloo go through queues and threads of its own, which on a machine with few
processors wait for each other; what ranks agree on is small, and each round holds all of them up.
"""

from collections.abc import Mapping

import torch

from runtime.transport.shared_memory.endpoint import ChannelEnd


class LocalCollectives:
    """The ends between a rank and the coordinator, the last rank; on that one, to all others."""

    def __init__(
        self,
        rank: int,
        size: int,
        receiving: Mapping[int, ChannelEnd],
        sending: Mapping[int, ChannelEnd],
    ) -> None:
        """Take the ends of `rank`, by peer."""
        self.coordinator = size - 1
        self._rank, self._size = rank, size
        self._receiving, self._sending = receiving, sending

    def all_gather(self, own: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's tensor, uint8 in one dimension and all of one size, by rank.

        Raises:
            LocalChannelError: a rank is gone.
        """
        gathered = torch.empty((self._size, own.numel()), dtype=torch.uint8)
        if self._rank == self.coordinator:
            gathered[self.coordinator] = own
            arriving = [end.begin([gathered[peer]]) for peer, end in self._receiving.items()]
            for receiving in arriving:
                receiving.wait()
        else:
            self._sending[self.coordinator].begin([own]).wait()
        self.broadcast(gathered.view(-1), self.coordinator)
        return list(gathered.unbind())

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """Hand one rank's tensor, uint8 in one dimension, to all, through the coordinator.

        Raises:
            LocalChannelError: a rank is gone.
        """
        if self._rank == self.coordinator:
            if source != self.coordinator:
                self._receiving[source].begin([tensor]).wait()
            others = [end for peer, end in self._sending.items() if peer != source]
            for sending in [end.begin([tensor]) for end in others]:
                sending.wait()
        elif self._rank == source:
            self._sending[self.coordinator].begin([tensor]).wait()
        else:
            self._receiving[self.coordinator].begin([tensor]).wait()
