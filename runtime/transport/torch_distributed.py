"""Transport over `torch.distributed`: NCCL between GPUs, gloo between CPUs.

- Every transfer is an `isend` or `irecv`. On NCCL they run on the communicator's own stream, after
  what the current stream had enqueued when they were posted, and `wait` makes the current stream
  wait for them: hence a receive place is not overwritten before the forward that reads it, nor
  read before it is filled, and the host never blocks on a transfer.
- A message of several tensors is one group.
- Channels share the pipeline's process group or have one each; docs/transports.md says when which
  is faster. All these groups are the transport's own: a failure ends them, and `open` makes others.
- Between CPUs of one host, messages go through shared memory; process groups are for the rest.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from runtime.failure.board import MeetingPlace
from runtime.transport.channel_groups import ChannelGroups, Channels, Route
from runtime.transport.groups import UNGUARDED_TIMEOUT, RenewableGroup
from runtime.transport.local.channels import LocalChannels
from runtime.transport.local.receiving import Receiving, ReceivingEnd
from runtime.transport.local.sending import Sending, SendingEnd
from runtime.transport.local.star import Star
from runtime.transport.meeting import meeting_place, own_store
from runtime.transport.nccl import require_eager
from runtime.transport.objects import gather_objects
from runtime.transport.operations import Call, begin, begin_together
from runtime.transport.protocol import ConnectionLostError, Pending, TransportError, as_bytes
from schemas import Direction


EXCHANGED_BYTES = 256
"""What the ends of a channel tell each other when it is opened."""


@dataclass(slots=True)
class _Posted:
    direction: Direction
    peer: int
    route: Route | SendingEnd | ReceivingEnd
    views: list[torch.Tensor]
    """Kept alive until the wait."""
    works: list[dist.Work | Sending | Receiving]
    """Empty while the transfer is held back in a group."""

    def calls(self) -> list[Call]:
        """The transfers of its tensors in a process group."""
        assert isinstance(self.route, Route)
        return [Call(self.direction, view, self.route.peer) for view in self.views]

    def __str__(self) -> str:
        way = "send to" if self.direction is Direction.SEND else "receive from"
        return f"{way} stage {self.peer}"


class TorchTransport:
    """The ranks of one process group as the stages of one pipeline, in rank order."""

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        *,
        device: torch.device | None = None,
        replicas: dist.ProcessGroup | None = None,
        channels: Channels | None = None,
    ) -> None:
        """Connect the stages of `group` (default: all ranks).

        Args:
            group: The ranks of this pipeline; group rank is stage id.
            device: Where activations live; default: the GPU of an NCCL group, else the CPU.
            replicas: The ranks of this stage in all data-parallel replicas; `None` if this
                pipeline is the only one.
            channels: Whether all channels share `group`, or each has a process group of its own, or
                shared memory is used between processes of one host; default: that on a CPU, and
                `"shared"` on a GPU.

        Raises:
            TransportError: there is no process group, or NCCL was not initialised as it has to be.
        """
        if not dist.is_initialized():
            raise TransportError("torch.distributed is not initialised, needed a process group")
        world = dist.group.WORLD
        assert world is not None
        group = group or world
        on_gpu = "nccl" in dist.get_backend(group)
        bound = require_eager(world) if on_gpu else torch.device("cpu")
        self._device = device or bound
        self._stage_id, self._stages = group.rank(), group.size()
        # At the meeting place, by stage: with replicas, all processes meet.
        self._ranks = dist.get_process_group_ranks(group) if replicas else range(self._stages)
        store = own_store(dist.get_process_group_ranks(world if replicas else group))
        self._pipeline = RenewableGroup(group, store, self._device)
        self._replicas = None
        if replicas is not None:
            self._replicas = RenewableGroup(replicas, store, self._device)
        channels = channels or ("memory" if self._device.type == "cpu" else "shared")
        self._channels = ChannelGroups(self._pipeline, self._device, channels)
        self._local = LocalChannels() if channels == "memory" else None
        self._ends = self._local.ends if self._local else {}
        self._timeout = UNGUARDED_TIMEOUT
        self._meeting_place = meeting_place(group, replicas, store)
        self._epoch = 0
        self._held: list[_Posted] | None = None

    @property
    def stage_id(self) -> int:
        """The group rank of this process."""
        return self._stage_id

    @property
    def stages(self) -> int:
        """The size of the group."""
        return self._stages

    @property
    def replica(self) -> int:
        """The rank of this process among those of its stage."""
        return 0 if self._replicas is None else self._replicas.rank

    @property
    def replicas(self) -> int:
        """The number of replicas."""
        return 1 if self._replicas is None else self._replicas.size

    @property
    def device(self) -> torch.device:
        """Where activations live."""
        return self._device

    def post_send(self, payload: Sequence[torch.Tensor], peer: int) -> Pending:
        """Begin to send; see `Transport`."""
        return self._post(Direction.SEND, payload, peer)

    def post_receive(self, places: Sequence[torch.Tensor], peer: int) -> Pending:
        """Begin to receive; see `Transport`."""
        return self._post(Direction.RECV, places, peer)

    def start_group(self) -> None:
        """Hold posts back; see `Transport`."""
        assert self._held is None, "groups do not nest"
        self._held = []

    def end_group(self) -> None:
        """Post what was held back, as one batch in each process group; see `Transport`."""
        assert self._held is not None, "no group was started"
        held, self._held = self._held, None
        by_group: dict[int, list[_Posted]] = {}
        for posted in held:
            if isinstance(posted.route, Route):
                by_group.setdefault(id(posted.route.group), []).append(posted)
            else:
                self._begin(posted)
        for members in by_group.values():
            self._begin_together(members)

    def wait(self, pending: Pending) -> None:
        """Wait for a posted transfer: the host on a CPU, the current stream on NCCL."""
        assert isinstance(pending, _Posted)
        if isinstance(pending.route, Route):
            self._leave_local_channels()
        try:
            for work in pending.works:
                work.wait()
        except RuntimeError as error:
            raise self._failed(pending, error, pending.peer) from error

    def receive_memory(self, nbytes: int) -> torch.Tensor:
        """Shared memory, if a local channel comes here."""
        if any(direction is Direction.RECV for direction, _ in self._ends):
            assert self._local is not None
            return self._local.memory.allocate(nbytes)
        return torch.empty(nbytes, dtype=torch.uint8, device=self._device)

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """Hand `tensor` of stage `source` to all stages."""
        if self.stages == 1:
            return
        star = self._star
        try:
            if star is not None and source == star.hub:
                star.broadcast(as_bytes(tensor))
            else:
                self._leave_local_channels()
                self._pipeline.group.broadcast(tensor, source).wait()
        except RuntimeError as error:
            raise self._failed(f"broadcast from stage {source}", error) from error

    def gather_objects(self, value: Any) -> list[Any]:
        """Every stage's `value`."""
        if self._star is None:
            return self._gather(self._pipeline, value, "agreement of all stages")
        try:
            return gather_objects(value, self._star.all_gather)
        except RuntimeError as error:
            raise self._failed("agreement of all stages", error) from error

    def gather_from_replicas(self, value: Any) -> list[Any]:
        """The `value` of this stage in every replica."""
        if self._replicas is None:
            return [value]
        return self._gather(self._replicas, value, "agreement of all replicas")

    def connect(self, receives_from: Iterable[int], sends_to: Iterable[int]) -> None:
        """Exchange a number over each channel and wait for the device; see `Transport`.

        The first use of a peer sets its connection up and blocks the host meanwhile. Each exchange
        is one symmetric group, and all stages go through the channels in the same order, so no
        stage is blocked on another that is busy connecting elsewhere.
        """
        wanted = [(Direction.RECV, peer) for peer in receives_from]
        wanted += [(Direction.SEND, peer) for peer in sends_to]
        local = self._local
        try:
            for direction, peer in self._channels.open(wanted):
                exchange = partial(self._exchange, self._channels.route(direction, peer))
                exchange(b"")
                if local is not None:
                    local.open(direction, peer, self._timeout, exchange)
            if local is not None and local.star is None:
                local.open_star(self.stage_id, self.stages, self._timeout, self._exchange_with)
        except RuntimeError as error:
            raise self._failed("connection of neighbours", error) from error
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    @property
    def meeting_place(self) -> MeetingPlace | None:
        """On the store through which the processes found each other."""
        return self._meeting_place

    @property
    def epoch(self) -> int:
        """How often this rank has abandoned its groups."""
        return self._epoch

    @property
    def usable(self) -> bool:
        """Whether the groups are there."""
        return self._pipeline.is_open and (self._replicas is None or self._replicas.is_open)

    def open(self, timeout: float) -> None:
        """Make the groups; all ranks have to come. See `Transport`."""
        self._held, self._timeout = None, timedelta(seconds=timeout)
        self._channels.clear()
        if self._local is not None:
            self._local.clear()
        for group in (self._pipeline, self._replicas):
            if group is not None:
                group.open(self._epoch, self._timeout)

    def abandon(self) -> None:
        """End the groups and local channels, and every wait in them."""
        self._epoch += 1
        if self._local is not None:
            self._local.abandon()
        for group in (self._pipeline, self._replicas):
            if group is not None:
                group.abandon()

    def _post(self, direction: Direction, tensors: Sequence[torch.Tensor], peer: int) -> _Posted:
        views = [as_bytes(tensor) for tensor in tensors if tensor.numel()]
        route = self._ends.get((direction, peer)) or self._channels.route(direction, peer)
        posted = _Posted(direction, peer, route, views, [])
        if self._held is not None:
            self._held.append(posted)
        else:
            self._begin(posted)
        return posted

    def _begin(self, posted: _Posted) -> None:
        try:
            if not isinstance(posted.route, Route):
                posted.works.append(posted.route.begin(posted.views))
            elif len(posted.views) == 1:
                posted.works.append(begin(posted.route.group, posted.calls()[0]))
            else:
                self._begin_together([posted])
        except ConnectionLostError:
            raise
        except RuntimeError as error:
            raise self._failed(posted, error, posted.peer) from error

    def _begin_together(self, members: Sequence[_Posted]) -> None:
        """Begin transfers of one process group as one entry of its queue."""
        calls = [call for posted in members for call in posted.calls()]
        assert isinstance(route := members[0].route, Route)
        try:
            works = iter(begin_together(route.group, calls, self._pipeline.batches_on))
        except RuntimeError as error:
            peer = members[0].peer if len(members) == 1 else None
            raise self._failed(" and ".join(map(str, members)), error, peer) from error
        for posted in members:
            posted.works.extend(work for _, work in zip(posted.views, works, strict=False))

    @property
    def _star(self) -> Star | None:
        return self._local.star if self._local is not None else None

    def _leave_local_channels(self) -> None:
        """Before a wait in a process group, in which nobody looks after their sends."""
        if self._local is not None:
            self._local.progress.hand_over()

    def _exchange_with(self, peer: int, said: bytes) -> bytes:
        return self._exchange(Route(self._pipeline.group, peer), said)

    def _exchange(self, route: Route, said: bytes) -> bytes:
        """Tell the other end of a channel something, and hear what it says."""
        device = self._device
        out = torch.frombuffer(bytearray(said.ljust(EXCHANGED_BYTES, b"\0")), dtype=torch.uint8)
        heard = torch.empty(EXCHANGED_BYTES, dtype=torch.uint8, device=device)
        both = [
            Call(Direction.SEND, out.to(device), route.peer),
            Call(Direction.RECV, heard, route.peer),
        ]
        for work in begin_together(route.group, both, self._pipeline.batches_on):
            work.wait()
        return heard.cpu().numpy().tobytes().rstrip(b"\0")

    def _gather(self, members: RenewableGroup, value: Any, what: str) -> list[Any]:
        self._leave_local_channels()
        try:
            return members.gather_objects(value)
        except RuntimeError as error:
            raise self._failed(what, error) from error

    def _failed(
        self, what: object, error: RuntimeError, peer: int | None = None
    ) -> ConnectionLostError:
        """What the backend raised, as an error that names what was being done."""
        # Without the line of its source, and its advice.
        said = str(error).partition(" This is typically caused by")[0]
        reason = re.sub(r"^\[\S+:\d+\] ", "", said).rstrip(".")
        return ConnectionLostError(
            f"{what} failed: {reason}", None if peer is None else self._ranks[peer]
        )
