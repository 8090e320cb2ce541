"""Transport over `torch.distributed`: NCCL between GPUs, gloo between CPUs.

- Every transfer is an `isend` or `irecv`. On NCCL they run on the communicator's own stream, after
  what the current stream had enqueued when they were posted, and `wait` makes the current stream
  wait for them: hence a receive place is not overwritten before the forward that reads it, nor
  read before it is filled, and the host never blocks on a transfer.
- A message of several tensors is one group.
- Channels share the pipeline's process group or have one each; docs/transports.md says when which
  is faster.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from runtime.transport.channel_groups import ChannelGroups, Channels, Route
from runtime.transport.nccl import require_eager
from runtime.transport.objects import gather_objects
from runtime.transport.protocol import Pending, TransportError, as_bytes
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
        self._group = group or world
        self._replicas = replicas
        on_gpu = "nccl" in dist.get_backend(self._group)
        bound = require_eager(world) if on_gpu else torch.device("cpu")
        self._device = device or bound
        self._channels = ChannelGroups(self._group, self._device, channels)
        self._stage_id, self._stages = self._group.rank(), self._group.size()
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
        return 0 if self._replicas is None else dist.get_rank(self._replicas)

    @property
    def replicas(self) -> int:
        """The number of replicas."""
        return 1 if self._replicas is None else dist.get_world_size(self._replicas)

    @property
    def device(self) -> torch.device:
        """Where activations live."""
        return self._device

    @property
    def groups(self) -> tuple[dist.ProcessGroup, ...]:
        """Every process group on which this stage may wait for a transfer."""
        return self._channels.groups

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
            _begin_together(members)

    def wait(self, pending: Pending) -> None:
        """Wait for a posted transfer: the host on gloo, the current stream on NCCL."""
        assert isinstance(pending, _Posted)
        try:
            for work in pending.works:
                work.wait()
        except RuntimeError as error:
            raise _failed(pending, error) from error

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """Hand `tensor` of stage `source` to all stages."""
        if self.stages > 1:
            try:
                dist.broadcast(tensor, group_src=source, group=self._group)
            except RuntimeError as error:
                raise _failed(f"broadcast from stage {source}", error) from error

    def gather_objects(self, value: Any) -> list[Any]:
        """Every stage's `value`."""
        try:
            return gather_objects(value, self._group, self._device)
        except RuntimeError as error:
            raise _failed("agreement of all stages", error) from error

    def gather_from_replicas(self, value: Any) -> list[Any]:
        """The `value` of this stage in every replica."""
        if self._replicas is None:
            return [value]
        try:
            return gather_objects(value, self._replicas, self._device)
        except RuntimeError as error:
            raise _failed("agreement of all replicas", error) from error

    def connect(self, receives_from: Iterable[int], sends_to: Iterable[int]) -> None:
        """Exchange a number over each channel and wait for the device; see `Transport`.

        The first use of a peer sets its connection up and blocks the host meanwhile. Each exchange
        is one symmetric group, and all stages go through the channels in the same order, so no
        stage is blocked on another that is busy connecting elsewhere.
        """
        wanted = [(Direction.RECV, peer) for peer in receives_from]
        wanted += [(Direction.SEND, peer) for peer in sends_to]
        try:
            for route in self._channels.open(wanted):
                exchange = [
                    dist.P2POp(
                        operation,
                        torch.zeros(1, device=self._device),
                        group=route.group,
                        group_peer=route.peer,
                    )
                    for operation in (dist.isend, dist.irecv)
                ]
                for work in dist.batch_isend_irecv(exchange):
                    work.wait()
        except RuntimeError as error:
            raise _failed("connection of neighbours", error) from error
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _post(self, direction: Direction, tensors: Sequence[torch.Tensor], peer: int) -> _Posted:
        views = [as_bytes(tensor) for tensor in tensors if tensor.numel()]
        posted = _Posted(direction, peer, self._channels.route(direction, peer), views, [])
        if self._held is not None:
            self._held.append(posted)
        else:
            _begin_together([posted])
        return posted


def _begin_together(members: list[_Posted]) -> None:
    """Begin transfers of one process group as one entry of its queue."""
    try:
        if len(members) == 1 and len(members[0].views) == 1:
            members[0].works.append(_begin(members[0]))
            return
        operations = [
            dist.P2POp(
                dist.isend if posted.direction is Direction.SEND else dist.irecv,
                view,
                group=posted.route.group,
                group_peer=posted.route.peer,
            )
            for posted in members
            for view in posted.views
        ]
        works = dist.batch_isend_irecv(operations) if operations else []
    except RuntimeError as error:
        raise _failed(" and ".join(map(str, members)), error) from error
    if len(works) < len(operations):  # NCCL: one work for all, which may be waited for repeatedly
        for posted in members:
            posted.works.extend(works)
        return
    rest = iter(works)  # gloo: a work for each
    for posted in members:
        posted.works.extend(work for _, work in zip(posted.views, rest, strict=False))


def _begin(posted: _Posted) -> dist.Work:
    """What `dist.isend` and `dist.irecv` come down to, without what they ask on every call."""
    group, peer = posted.route
    if posted.direction is Direction.SEND:
        return group.send(posted.views, peer, 0)
    return group.recv(posted.views, peer, 0)


def _failed(what: object, error: RuntimeError) -> TransportError:
    """What the backend raised, as an error that names what was being done."""
    return TransportError(f"{what} failed: {error}")
