"""Transport over `torch.distributed`: NCCL between GPUs, gloo between CPUs.

- Every transfer is an `isend` or `irecv`. On NCCL they run on the communicator's own stream, after
  what the current stream had enqueued when they were posted, and `wait` makes the current stream
  wait for them: hence a receive place is not overwritten before the forward that reads it, nor
  read before it is filled, and the host never blocks on a transfer.
- A message of several tensors is one group.
- Channels share the pipeline's process group or have one each; see docs/explanation/transports.md.
  All these groups are the transport's own: a failure ends them, and `open` makes others.
- Between CPUs of one host, messages go through shared memory; process groups are for the rest.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from runtime.transport.private_store import PrivateStore
from runtime.transport.protocol import ConnectionLostError, Pending, TransportError, as_bytes
from runtime.transport.rendezvous import RendezvousStore
from runtime.transport.shared_memory.channels import LocalChannels
from runtime.transport.torch_distributed.channel_groups import ChannelGroups, Channels
from runtime.transport.torch_distributed.collectives import Collectives
from runtime.transport.torch_distributed.exchanges import Exchanges
from runtime.transport.torch_distributed.groups.backends import (
    UNGUARDED_TIMEOUT,
    bounded,
    default_device,
    require_backend,
)
from runtime.transport.torch_distributed.groups.nccl import device_of_nccl
from runtime.transport.torch_distributed.groups.nccl_settings import NcclSettings
from runtime.transport.torch_distributed.groups.point_to_point import require_on
from runtime.transport.torch_distributed.groups.process_groups import (
    RenewableGroup,
    abandon_together,
)
from runtime.transport.torch_distributed.posted import Posted, begin_posted, failure_of, together
from runtime.transport.torch_distributed.rendezvous import (
    Grid,
    grid_of,
    group_store,
    job_store,
    rendezvous,
)
from schemas import Direction


class TorchTransport:
    """The processes of one group as the ranks of one pipeline."""

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        *,
        device: torch.device | None = None,
        replicas: dist.ProcessGroup | None = None,
        channels: Channels | None = None,
        grid: Grid | None = None,
        name: str | None = None,
        nccl: NcclSettings | None = None,
    ) -> None:
        """Connect the ranks of `group` (default: all ranks).

        Args:
            group: The processes of this pipeline, or of more; the rank in the group is the rank in
                the pipeline, unless `grid` says otherwise.
            device: Where activations live; default: the GPU of an NCCL group, else the CPU.
            replicas: The processes of this rank in all data-parallel replicas; `None` if this
                pipeline is the only one, or `group` holds those of all.
            channels: What activations travel through, see `Channels`; default: `"memory"` on a
                CPU; on a GPU `"shared"`, or `"per-edge"` where channels lead around in a circle.
            grid: The global ranks of every replica's processes, in the order of the pipeline;
                default: those of `group` and of the groups that the replicas name.
            name: Of this pipeline, among several that make up one replica; for recordings.
            nccl: Settings of the communicators, the same on all ranks; default: `NcclSettings()`.

        Raises:
            TransportError: there is no process group, or none that fits the device.
        """
        if not dist.is_initialized():
            raise TransportError("torch.distributed is not initialised, needed a process group")
        world = dist.group.WORLD
        assert world is not None
        group = group or world
        self.device = device or default_device(group)
        """Where activations live."""
        if require_backend(group, self.device) == "nccl":
            self.device = device_of_nccl(world, device)
        self.name = name
        grid = grid or grid_of(group, replicas)
        here = dist.get_rank()
        self.replica = next(number for number, ranks in enumerate(grid) if here in ranks)
        """The pipeline of this process among those of all replicas."""
        pipeline, self.replicas = grid[self.replica], len(grid)
        self.rank, self.ranks = pipeline.index(here), len(pipeline)
        """The place of this process in its pipeline, and the length of that."""
        job = job_store([rank for ranks in grid for rank in ranks])
        store = group_store(job)
        self._pipeline = RenewableGroup(group, store, self.device, pipeline, nccl)
        self._peers = None
        if len(grid) > 1:
            peers = [ranks[self.rank] for ranks in grid]
            self._peers = RenewableGroup(replicas or group, store, self.device, peers, nccl)
        self._groups = [g for g in (self._pipeline, self._peers) if g is not None]
        self._channels = ChannelGroups(self._pipeline, self.device, channels)
        directory = Path(job.store.directory) if isinstance(job.store, PrivateStore) else None
        self._local = LocalChannels(active=self._channels.uses_memory, directory=directory)
        self._exchanges = Exchanges(self._pipeline, self._channels, job)
        self._collectives = Collectives(self._pipeline, self._peers, self._local, self._exchanges)
        self._timeout = UNGUARDED_TIMEOUT
        self._rendezvous = rendezvous(grid, job)
        self._closed, self.generation = False, 0
        """How often this rank has abandoned its groups."""
        self._held: list[Posted] | None = None

    @property
    def global_rank(self) -> int:
        """The rank of this process among all."""
        return dist.get_rank()

    @property
    def channels(self) -> Channels:
        """What activations travel through."""
        return self._channels.kind

    def joins(self, direction: Direction, peer: int) -> bool:
        """Local channels do: process groups need the exact size at both ends."""
        return (direction, peer) in self._local.ends

    def post_send(
        self, payload: Sequence[torch.Tensor], peer: int, *, joined: bool = False
    ) -> Pending:
        """Begin to send; see `Transport`."""
        return self._post(Direction.SEND, payload, peer, joined=joined)

    def post_receive(
        self, places: Sequence[torch.Tensor], peer: int, *, joined: bool = False
    ) -> Pending:
        """Begin to receive; see `Transport`."""
        return self._post(Direction.RECV, places, peer, joined=joined)

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
            pending.wait(self._pipeline.wait)
            self._pipeline.require_usable()
        except RuntimeError as error:
            raise self._failed(pending, error, pending.peer) from error

    def receive_memory(self, nbytes: int) -> torch.Tensor:
        """Shared memory, if a local channel comes here."""
        if any(direction is Direction.RECV for direction, _ in self._local.ends):
            return self._local.memory.allocate(nbytes)
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def release_memory(self, memory: torch.Tensor) -> None:
        """Let go of the descriptor of shared memory; see `Transport`."""
        self._local.memory.release(memory)

    def to_host(self, message: torch.Tensor) -> torch.Tensor:
        """Copy a message that is on a GPU; see `Transport`."""
        with self._named("reading of a message"):
            return self._pipeline.download(message)

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """Hand `tensor` of rank `source` to all ranks."""
        with self._named(f"broadcast from rank {source}"):
            self._collectives.broadcast(tensor, source)

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's `value`."""
        with self._named("agreement of all ranks"):
            return self._collectives.gather_objects(value)

    def gather_from_replicas(self, value: Any) -> list[Any]:
        """The `value` of this rank in every replica."""
        with self._named("agreement of all replicas"):
            return self._collectives.gather_from_replicas(value)

    def separate_channels(self) -> None:
        """Between GPUs, with a process group for each; see `Transport`."""
        self._channels.separate()

    def connect(self, receives_from: Iterable[int], sends_to: Iterable[int]) -> None:
        """Exchange something over each channel, watchfully; see `Transport`.

        The first use of a peer sets its connection up and blocks the host meanwhile. Each exchange
        is one symmetric group, and all ranks go through the channels in the same order, so no
        rank is blocked on another that is busy connecting elsewhere.
        """
        wanted = [(Direction.RECV, peer) for peer in receives_from]
        wanted += [(Direction.SEND, peer) for peer in sends_to]
        with self._named("connection of neighbours"):
            for direction, peer in self._channels.open(wanted):
                with_peer = self._exchanges.over(direction, peer)
                self._local.open(direction, peer, self._timeout, with_peer)
            if self.device.type == "cpu":
                self._collectives.open_local()

    @property
    def rendezvous(self) -> RendezvousStore | None:
        """Over the store through which the processes found each other."""
        if self._closed:
            raise TransportError("the transport was closed")
        return self._rendezvous

    @property
    def usable(self) -> bool:
        """Whether the groups are there."""
        return all(group.is_open for group in self._groups)

    def open(self, timeout: float) -> None:
        """Make the groups; all ranks have to come. See `Transport`."""
        self._held, self._timeout = None, bounded(timeout)
        self._collectives.timeout = self._timeout
        self._channels.clear()
        self._local.clear()
        for group in self._groups:
            group.open(self.generation, self._timeout)
        self._exchanges.open(self.generation, self._timeout.total_seconds())

    def abandon(self) -> None:
        """End the groups and local channels, and every wait in them."""
        self.generation += 1
        self._local.abandon()
        abandon_together(self._groups)

    def close(self) -> None:
        """Let go of the groups, the channels and the store, and all that the system gave."""
        self._local.close()
        self._channels.clear()
        for group in self._groups:
            group.close()
        if self._rendezvous is not None:
            self._rendezvous.processes.close()
        self._rendezvous, self._closed = None, True

    def _post(
        self, direction: Direction, tensors: Sequence[torch.Tensor], peer: int, *, joined: bool
    ) -> Posted:
        views = [as_bytes(tensor) for tensor in tensors if tensor.numel()]
        if self.device.type != "cpu":
            require_on(self.device, views)
        way = self._local.ends.get((direction, peer)) or self._channels.route(direction, peer)
        posted = Posted(direction, peer, way, views, joined)
        assert not (joined and posted.in_group), "process groups take no joined messages"
        if self._held is not None:
            self._held.append(posted)
        else:
            self._begin([posted])
        return posted

    def _begin(self, members: Sequence[Posted]) -> None:
        try:
            if members[0].in_group:
                with self._pipeline.call():
                    begin_posted(members, self._pipeline.batches_on)
            else:
                begin_posted(members, None)
        except RuntimeError as error:
            peer = members[0].peer if len(members) == 1 else None
            raise self._failed(" and ".join(map(str, members)), error, peer) from error

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        """Say in an error what was being done; not for transfers, which are too many for it."""
        try:
            yield
        except RuntimeError as error:
            raise self._failed(what, error) from error

    def _failed(
        self, what: object, error: RuntimeError, peer: int | None = None
    ) -> ConnectionLostError:
        at = None if peer is None else self.replica * self.ranks + peer  # of the rendezvous
        return failure_of(what, error, at)
