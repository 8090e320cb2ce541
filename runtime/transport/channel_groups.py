"""Process groups of channels: shared by a whole pipeline, or one for each channel.

A channel is an ordered pair of stages. On NCCL a process group is a communicator with one stream,
on which transfers start in the order in which they were posted: where channels share one, a receive
that is posted early holds up the sends behind it until its message comes.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist

from runtime.transport.groups import RenewableGroup
from runtime.transport.nccl import require_launch_order
from runtime.transport.protocol import TransportError
from schemas import Direction

Channels = Literal["shared", "per-edge"]
"""One process group for all channels of a pipeline, or one for each."""


class Route(NamedTuple):
    """How a transfer reaches its peer."""

    group: dist.ProcessGroup
    peer: int
    """The peer's rank in the group."""


class ChannelGroups:
    """The routes of one stage, to and from each of its peers."""

    def __init__(self, pipeline: RenewableGroup, device: torch.device, channels: Channels) -> None:
        """Route the channels between the stages of `pipeline`, whose tensors are on `device`.

        Raises:
            TransportError: `channels` names no way to route, or NCCL is not prepared for it.
        """
        if channels not in ("shared", "per-edge"):
            raise TransportError(f"channels is {channels!r}, needed 'shared' or 'per-edge'")
        if channels == "per-edge" and device.type == "cuda":
            require_launch_order()
        self._pipeline, self._shared = pipeline, channels == "shared"
        self._routes: dict[tuple[Direction, int], Route] = {}

    def route(self, direction: Direction, peer: int) -> Route:
        """The route of the channel to or from stage `peer`.

        Raises:
            TransportError: the channel has a group of its own, but was not opened.
        """
        if self._shared:
            return Route(self._pipeline.group, peer)
        try:
            return self._routes[direction, peer]
        except KeyError:
            way = "to" if direction is Direction.SEND else "from"
            raise TransportError(f"the channel {way} stage {peer} was not connected") from None

    def open(self, wanted: Iterable[tuple[Direction, int]]) -> list[Route]:
        """Make the groups of new channels; both ends of each have to take part.

        Args:
            wanted: Direction and peer of the channels that this stage wants.

        Returns:
            The routes of those channels, in an order in which all stages may use them in turn.
        """
        mine = {self._channel(direction, peer): (direction, peer) for direction, peer in wanted}
        for (source, destination), (direction, peer) in sorted(mine.items()):
            if not self._shared:
                group = self._pipeline.edge(source, destination)
                rank = 1 if direction is Direction.SEND else 0
                self._routes[direction, peer] = Route(group, rank)
        return [self.route(*mine[channel]) for channel in sorted(mine)]

    def clear(self) -> None:
        """Forget the groups of an epoch that is over."""
        self._routes.clear()

    def _channel(self, direction: Direction, peer: int) -> tuple[int, int]:
        """Source and destination."""
        here = self._pipeline.rank
        return (here, peer) if direction is Direction.SEND else (peer, here)
