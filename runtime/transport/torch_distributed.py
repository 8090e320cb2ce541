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
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from runtime.failure.board import MeetingPlace
from runtime.transport.channel_groups import ChannelGroups, Channels, Route
from runtime.transport.groups import UNGUARDED_TIMEOUT, RenewableGroup, bounded
from runtime.transport.local.channels import LocalChannels
from runtime.transport.meeting import meeting_place, own_store
from runtime.transport.nccl import require_eager
from runtime.transport.objects import Round, gather_objects
from runtime.transport.posted import Posted, begin_posted, together
from runtime.transport.protocol import ConnectionLostError, Pending, TransportError, as_bytes
from schemas import Direction


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
            channels: What activations travel through: `"memory"` that is shared by the stages of
                a host and one process group for other channels (the default on a CPU), one process
                group for all that is `"shared"` (the default on a GPU), or one `"per-edge"`.

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
        self._local = LocalChannels(active=channels == "memory")
        self._timeout = UNGUARDED_TIMEOUT
        self._meeting_place = meeting_place(group, replicas, store)
        self._epoch = 0
        self._held: list[Posted] | None = None

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
        for members in together(held):
            self._begin(members)

    def wait(self, pending: Pending) -> None:
        """Wait for a posted transfer: the host on a CPU, the current stream on NCCL."""
        assert isinstance(pending, Posted)
        if pending.in_group:
            self._local.leave()
        try:
            for work in pending.works:
                work.wait()
        except RuntimeError as error:
            raise self._failed(pending, error, pending.peer) from error

    def receive_memory(self, nbytes: int) -> torch.Tensor:
        """Shared memory, if a local channel comes here."""
        if any(direction is Direction.RECV for direction, _ in self._local.ends):
            return self._local.memory.allocate(nbytes)
        return torch.empty(nbytes, dtype=torch.uint8, device=self._device)

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """Hand `tensor` of stage `source` to all stages."""
        if self.stages == 1:
            return
        star = self._local.star
        try:
            if star is not None and source == star.hub:
                star.broadcast(as_bytes(tensor))
            else:
                self._local.leave()
                self._pipeline.group.broadcast(tensor, source).wait()
        except RuntimeError as error:
            raise self._failed(f"broadcast from stage {source}", error) from error

    def gather_objects(self, value: Any) -> list[Any]:
        """Every stage's `value`."""
        star, what = self._local.star, "agreement of all stages"
        if star is not None:
            return self._gather(value, star.all_gather, self._stages, what)
        self._local.leave()
        return self._gather(value, self._pipeline.all_gather, self._stages, what)

    def gather_from_replicas(self, value: Any) -> list[Any]:
        """The `value` of this stage in every replica."""
        if self._replicas is None:
            return [value]
        self._local.leave()
        all_gather, size = self._replicas.all_gather, self._replicas.size
        return self._gather(value, all_gather, size, "agreement of all replicas")

    def connect(self, receives_from: Iterable[int], sends_to: Iterable[int]) -> None:
        """Exchange something over each channel and wait for the device; see `Transport`.

        The first use of a peer sets its connection up and blocks the host meanwhile. Each exchange
        is one symmetric group, and all stages go through the channels in the same order, so no
        stage is blocked on another that is busy connecting elsewhere.
        """
        wanted = [(Direction.RECV, peer) for peer in receives_from]
        wanted += [(Direction.SEND, peer) for peer in sends_to]
        exchange = self._channels.exchange
        try:
            for direction, peer in self._channels.open(wanted):
                with_peer = partial(exchange, self._channels.route(direction, peer))
                self._local.open(direction, peer, self._timeout, with_peer)
            if self._device.type == "cpu" and self._local.star is None:
                self._local.open_star(
                    self._stage_id,
                    self._stages,
                    self._timeout,
                    lambda peer, said: exchange(Route(self._pipeline.group, peer), said),
                )
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
        self._held, self._timeout = None, bounded(timeout)
        self._channels.clear()
        self._local.clear()
        for group in (self._pipeline, self._replicas):
            if group is not None:
                group.open(self._epoch, self._timeout)

    def abandon(self) -> None:
        """End the groups and local channels, and every wait in them."""
        self._epoch += 1
        self._local.abandon()
        for group in (self._pipeline, self._replicas):
            if group is not None:
                group.abandon()

    def _post(self, direction: Direction, tensors: Sequence[torch.Tensor], peer: int) -> Posted:
        views = [as_bytes(tensor) for tensor in tensors if tensor.numel()]
        way = self._local.ends.get((direction, peer)) or self._channels.route(direction, peer)
        posted = Posted(direction, peer, way, views)
        if self._held is not None:
            self._held.append(posted)
        else:
            self._begin([posted])
        return posted

    def _begin(self, members: Sequence[Posted]) -> None:
        try:
            begin_posted(members, self._pipeline.batches_on)
        except RuntimeError as error:
            peer = members[0].peer if len(members) == 1 else None
            raise self._failed(" and ".join(map(str, members)), error, peer) from error

    def _gather(self, value: Any, all_gather: Round, size: int, what: str) -> list[Any]:
        if size == 1:
            return [value]
        try:
            return gather_objects(value, all_gather)
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
