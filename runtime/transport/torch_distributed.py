"""Transport over `torch.distributed`: NCCL between GPUs, gloo between CPUs.

- Every transfer is an `isend` or `irecv`. On NCCL they run on the communicator's own stream, after
  what the current stream had enqueued when they were posted, and `wait` makes the current stream
  wait for them: hence a receive place is not overwritten before the forward that reads it, nor
  read before it is filled, and the host never blocks on a transfer.
- A message of several tensors is one group.
- Channels share the pipeline's process group or have one each; docs/transports.md says when which
  is faster. All these groups are the transport's own: a failure ends them, and `open` makes others.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from runtime.failure.board import MeetingPlace
from runtime.transport.channel_groups import ChannelGroups, Channels, Route
from runtime.transport.groups import RenewableGroup
from runtime.transport.meeting import meeting_place, own_store
from runtime.transport.nccl import require_eager
from runtime.transport.operations import Call, begin, begin_together
from runtime.transport.protocol import ConnectionLostError, Pending, TransportError, as_bytes
from schemas import Direction


@dataclass(slots=True)
class _Posted:
    direction: Direction
    peer: int
    route: Route
    views: list[torch.Tensor]
    """Kept alive until the wait."""
    works: list[dist.Work]
    """Empty while the transfer is held back in a group."""

    def call(self, number: int) -> Call:
        """The transfer of one of its tensors."""
        return Call(self.direction, self.views[number], self.route.peer)

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
        channels: Channels = "shared",
    ) -> None:
        """Connect the stages of `group` (default: all ranks).

        Args:
            group: The ranks of this pipeline; group rank is stage id.
            device: Where activations live; default: the GPU of an NCCL group, else the CPU.
            replicas: The ranks of this stage in all data-parallel replicas; `None` if this
                pipeline is the only one.
            channels: Whether all channels share `group`, or each has a process group of its own.

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
        self._channels = ChannelGroups(self._pipeline, self._device, channels)
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
            by_group.setdefault(id(posted.route.group), []).append(posted)
        for members in by_group.values():
            self._begin_together(members)

    def wait(self, pending: Pending) -> None:
        """Wait for a posted transfer: the host on gloo, the current stream on NCCL."""
        assert isinstance(pending, _Posted)
        try:
            for work in pending.works:
                work.wait()
        except RuntimeError as error:
            raise self._failed(pending, error, pending.peer) from error

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """Hand `tensor` of stage `source` to all stages."""
        if self.stages > 1:
            try:
                self._pipeline.group.broadcast(tensor, source).wait()
            except RuntimeError as error:
                raise self._failed(f"broadcast from stage {source}", error) from error

    def gather_objects(self, value: Any) -> list[Any]:
        """Every stage's `value`."""
        return self._gather(self._pipeline, value, "agreement of all stages")

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
        try:
            for group, peer in self._channels.open(wanted):
                exchange = [
                    Call(way, torch.zeros(1, dtype=torch.uint8, device=self._device), peer)
                    for way in (Direction.SEND, Direction.RECV)
                ]
                for work in begin_together(group, exchange, self._pipeline.batches_on):
                    work.wait()
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
        self._held = None
        self._channels.clear()
        for group in (self._pipeline, self._replicas):
            if group is not None:
                group.open(self._epoch, timedelta(seconds=timeout))

    def abandon(self) -> None:
        """End the groups, and every wait in them."""
        self._epoch += 1
        for group in (self._pipeline, self._replicas):
            if group is not None:
                group.abandon()

    def _post(self, direction: Direction, tensors: Sequence[torch.Tensor], peer: int) -> _Posted:
        views = [as_bytes(tensor) for tensor in tensors if tensor.numel()]
        posted = _Posted(direction, peer, self._channels.route(direction, peer), views, [])
        if self._held is not None:
            self._held.append(posted)
        else:
            self._begin_together([posted])
        return posted

    def _begin_together(self, members: Sequence[_Posted]) -> None:
        """Begin transfers of one process group as one entry of its queue."""
        group = members[0].route.group
        try:
            if len(members) == 1 and len(members[0].views) == 1:
                members[0].works.append(begin(group, members[0].call(0)))
                return
            calls = [posted.call(n) for posted in members for n in range(len(posted.views))]
            works = iter(begin_together(group, calls, self._pipeline.batches_on))
        except RuntimeError as error:
            peer = members[0].peer if len(members) == 1 else None
            raise self._failed(" and ".join(map(str, members)), error, peer) from error
        for posted in members:
            posted.works.extend(work for _, work in zip(posted.views, works, strict=False))

    def _gather(self, members: RenewableGroup, value: Any, what: str) -> list[Any]:
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
