"""Process groups of channels: shared by a whole pipeline, or one for each channel.

A channel is an ordered pair of stages. On NCCL a process group is a communicator with one stream,
on which transfers start in the order in which they were posted: where channels share one, a receive
that is posted early holds up the sends behind it until its message comes.
"""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist

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

    def __init__(self, group: dist.ProcessGroup, device: torch.device, channels: Channels) -> None:
        """Route the channels between the stages of `group`, whose tensors are on `device`.

        Raises:
            TransportError: `channels` names no way to route, or NCCL is not prepared for it.
        """
        if channels not in ("shared", "per-edge"):
            raise TransportError(f"channels is {channels!r}, needed 'shared' or 'per-edge'")
        if channels == "per-edge" and device.type == "cuda":
            require_launch_order()
        self._group, self._device, self._shared = group, device, channels == "shared"
        self._routes: dict[tuple[Direction, int], Route] = {}

    @property
    def groups(self) -> tuple[dist.ProcessGroup, ...]:
        """Every process group on which this stage's transfers run."""
        if self._shared:
            return (self._group,)
        return tuple({id(route.group): route.group for route in self._routes.values()}.values())

    def route(self, direction: Direction, peer: int) -> Route:
        """The route of the channel to or from stage `peer`.

        Raises:
            TransportError: the channel has a group of its own, but was not opened.
        """
        if self._shared:
            return Route(self._group, peer)
        try:
            return self._routes[direction, peer]
        except KeyError:
            way = "to" if direction is Direction.SEND else "from"
            raise TransportError(f"the channel {way} stage {peer} was not connected") from None

    def open(self, wanted: Iterable[tuple[Direction, int]]) -> list[Route]:
        """Make the groups of new channels; every process of the default group has to take part.

        Args:
            wanted: Direction and peer of the channels that this stage wants.

        Returns:
            The routes of those channels, in an order in which all stages may use them in turn.
        """
        mine = {self._channel(direction, peer): (direction, peer) for direction, peer in wanted}
        if self._shared:
            return [self.route(*mine[channel]) for channel in sorted(mine)]
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, sorted(mine))
        opened = []
        # `new_group` is for all processes, members or not, in the same order.
        for channel in sorted({channel for channels in everyone for channel in channels}):
            group = dist.new_group(list(channel), timeout=_timeout(self._group, self._device))
            if channel in mine:
                direction, peer = mine[channel]
                rank = dist.get_group_rank(group, dist.get_global_rank(self._group, peer))
                self._routes[direction, peer] = Route(group, rank)
                opened.append(self._routes[direction, peer])
        return opened

    def _channel(self, direction: Direction, peer: int) -> tuple[int, int]:
        """Global ranks of source and destination."""
        here, there = dist.get_rank(), dist.get_global_rank(self._group, peer)
        return (here, there) if direction is Direction.SEND else (there, here)


def _timeout(group: dist.ProcessGroup, device: torch.device) -> Any:
    """The timeout of a group, which `new_group` would otherwise set to the default of torch."""
    return group._get_backend(device).options._timeout
