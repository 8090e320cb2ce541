"""Process groups of channels: shared by a whole pipeline, or one for each channel.

A channel is an ordered pair of ranks. Channels between processes of one host may do without, see
`runtime.transport.shared_memory`. On NCCL a process group is a communicator with one stream,
on which transfers start in the order in which they were posted: where channels share one, a receive
that is posted early holds up the sends behind it until its message comes.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

import torch
import torch.distributed as dist

from runtime.transport.protocol import PeerChannel, TransportError
from runtime.transport.torch_distributed.groups.nccl import require_launch_order
from runtime.transport.torch_distributed.groups.point_to_point import Call, begin_together
from runtime.transport.torch_distributed.groups.process_groups import RenewableGroup
from schemas import Direction

Channels = Literal["memory", "shared", "per-edge"]
"""One process group for all channels of a pipeline, or one for each; or shared memory where two
ranks are on one host, and one process group for all other channels."""

EXCHANGED_BYTES = 256
"""What the ends of a channel tell each other in one exchange."""


class Route(NamedTuple):
    """How a transfer reaches its peer."""

    group: dist.ProcessGroup
    peer: int
    """The peer's rank in the group."""


class ChannelGroups:
    """The routes of one rank, to and from each of its peers."""

    def __init__(
        self, pipeline: RenewableGroup, device: torch.device, channels: Channels | None = None
    ) -> None:
        """Route the channels between the ranks of `pipeline`, whose tensors are on `device`.

        Args:
            pipeline: Its ranks.
            device: Where tensors are.
            channels: Default: `"memory"` on a CPU; on a GPU `"shared"`, unless `separate`d.

        Raises:
            TransportError: `channels` names no way to route, or there is none on this device.
        """
        default: Channels = "memory" if device.type == "cpu" else "shared"
        self._chosen, channels = channels is not None, channels or default
        if channels not in (known := get_args(Channels)):
            raise TransportError(f"channels is {channels!r}, needed one of {', '.join(known)}")
        if channels == "memory" and device.type != "cpu":
            raise TransportError(f"channels is 'memory' and the device {device}, needed a CPU")
        if channels == "per-edge" and device.type == "cuda":
            require_launch_order()
        self._device, self.uses_memory = device, channels == "memory"
        self._pipeline, self._shared = pipeline, channels != "per-edge"
        self._routes: dict[PeerChannel, Route] = {}

    @property
    def kind(self) -> Channels:
        """What activations travel through."""
        return "memory" if self.uses_memory else "shared" if self._shared else "per-edge"

    def separate(self) -> None:
        """Give each channel that is opened from here on a queue of its own.

        Between CPUs each has one in any case.

        Raises:
            TransportError: `"shared"` was asked for, or NCCL cannot have several communicators.
        """
        if self._device.type == "cpu" or not self._shared:
            return
        if self._chosen:
            raise TransportError(
                "channels is 'shared', but several stages on a rank lead the channels around in a "
                "circle, in which one queue on each GPU would wait for itself: needed 'per-edge'"
            )
        require_launch_order()
        self._shared = False

    def route(self, direction: Direction, peer: int) -> Route:
        """The route of the channel to or from rank `peer`.

        Raises:
            TransportError: the channel has a group of its own, but was not opened.
        """
        if self._shared:
            return Route(self._pipeline.group, peer)
        try:
            return self._routes[direction, peer]
        except KeyError:
            way = "to" if direction is Direction.SEND else "from"
            raise TransportError(f"the channel {way} rank {peer} was not connected") from None

    def open(self, wanted: Iterable[PeerChannel]) -> list[PeerChannel]:
        """Make the groups of channels that have none; both ends of each have to take part.

        Args:
            wanted: The channels that this rank wants.

        Returns:
            They, in an order in which all ranks may use them in turn.
        """
        in_turn = sorted(wanted, key=lambda channel: self._ends(*channel))
        if not self._shared:
            for direction, peer in in_turn:
                if (direction, peer) in self._routes:
                    continue  # of another plan, or another evaluator
                group = self._pipeline.edge(*self._ends(direction, peer))
                self._routes[direction, peer] = Route(group, direction is Direction.SEND)
        return in_turn

    def exchange(self, route: Route, message: bytes) -> bytes:
        """Give the other end of a channel a message, and take one from it, as one group.

        Args:
            route: Of the channel.
            message: Up to `EXCHANGED_BYTES`; zeros at the end are lost.
        """
        own = torch.frombuffer(bytearray(message.ljust(EXCHANGED_BYTES, b"\0")), dtype=torch.uint8)
        other = torch.empty(EXCHANGED_BYTES, dtype=torch.uint8, device=self._device)
        both = [
            Call(Direction.SEND, self._pipeline.upload(own), route.peer),
            Call(Direction.RECV, other, route.peer),
        ]
        with self._pipeline.call():
            works = begin_together(route.group, both, self._pipeline.batches_on)
        self._pipeline.finish(works)
        return self._pipeline.download(other).numpy().tobytes().rstrip(b"\0")

    def clear(self) -> None:
        """Forget the groups of a generation that is over."""
        self._routes.clear()

    def _ends(self, direction: Direction, peer: int) -> tuple[int, int]:
        """Source and destination."""
        here = self._pipeline.rank
        return (here, peer) if direction is Direction.SEND else (peer, here)
