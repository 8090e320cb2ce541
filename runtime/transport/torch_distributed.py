"""Transport over `torch.distributed`: NCCL between GPUs, gloo between CPUs.

- Every transfer is an `isend` or `irecv`. On NCCL they run on the communicator's own stream, after
  what the current stream had enqueued when they were posted, and `wait` makes the current stream
  wait for them: hence a receive place is not overwritten before the forward that reads it, nor
  read before it is filled, and the host never blocks on a transfer.
- The process group has to be initialised eagerly for NCCL (`device_id=...`), so that single and
  grouped transfers share one communicator and match.
- A message of several tensors is one group.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist

from runtime.transport.protocol import Pending, TransportError, as_bytes


@dataclass(frozen=True)
class _Posted:
    what: str
    operations: list[dist.P2POp]
    """Keep their tensors alive."""
    works: list[dist.Work]
    """Empty while the transfer is held back in a group."""


class TorchTransport:
    """The ranks of one process group as the stages of one pipeline, in rank order."""

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        *,
        device: torch.device | None = None,
        replicas: dist.ProcessGroup | None = None,
    ) -> None:
        """Connect the stages of `group` (default: all ranks).

        Args:
            group: The ranks of this pipeline; group rank is stage id.
            device: Where activations live; default: the current GPU for NCCL, else the CPU.
            replicas: The ranks of this stage in all data-parallel replicas; `None` if this
                pipeline is the only one.
        """
        if not dist.is_initialized():
            raise TransportError("torch.distributed is not initialised, needed a process group")
        world = dist.group.WORLD
        assert world is not None
        self._group = group or world
        self._replicas = replicas
        on_gpu = "nccl" in dist.get_backend(self._group)
        self._device = device or torch.device(
            f"cuda:{torch.cuda.current_device()}" if on_gpu else "cpu"
        )
        self._held: list[_Posted] | None = None

    @property
    def stage_id(self) -> int:
        """The group rank of this process."""
        return dist.get_rank(self._group)

    @property
    def stages(self) -> int:
        """The size of the group."""
        return dist.get_world_size(self._group)

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

    def post_send(self, payload: Sequence[torch.Tensor], peer: int) -> Pending:
        """Begin to send; see `Transport`."""
        return self._post(f"send to stage {peer}", dist.isend, payload, peer)

    def post_receive(self, places: Sequence[torch.Tensor], peer: int) -> Pending:
        """Begin to receive; see `Transport`."""
        return self._post(f"receive from stage {peer}", dist.irecv, places, peer)

    def start_group(self) -> None:
        """Hold posts back; see `Transport`."""
        assert self._held is None, "groups do not nest"
        self._held = []

    def end_group(self) -> None:
        """Post what was held back as one batch."""
        assert self._held is not None, "no group was started"
        held, self._held = self._held, None
        operations = [operation for posted in held for operation in posted.operations]
        with _named("group of " + ", ".join(posted.what for posted in held)):
            works = dist.batch_isend_irecv(operations) if operations else []
        if len(works) == len(operations):  # gloo: a work for each
            rest = iter(works)
            for posted in held:
                posted.works.extend(islice(rest, len(posted.operations)))
        else:  # NCCL: one for all, which may be waited for more than once
            for posted in held:
                posted.works.extend(works)

    def wait(self, pending: Pending) -> None:
        """Wait for a posted transfer: the host on gloo, the current stream on NCCL."""
        assert isinstance(pending, _Posted)
        with _named(pending.what):
            for work in pending.works:
                work.wait()

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """Hand `tensor` of stage `source` to all stages."""
        if self.stages > 1:
            with _named(f"broadcast from stage {source}"):
                dist.broadcast(tensor, src=self._rank_of(source), group=self._group)

    def gather_objects(self, value: Any) -> list[Any]:
        """Every stage's `value`."""
        values: list[Any] = [None] * self.stages
        with _named("agreement of all stages"):
            dist.all_gather_object(values, value, group=self._group)
        return values

    def gather_from_replicas(self, value: Any) -> list[Any]:
        """The `value` of this stage in every replica."""
        values: list[Any] = [value] * self.replicas
        if self._replicas is not None:
            with _named("agreement of all replicas"):
                dist.all_gather_object(values, value, group=self._replicas)
        return values

    def connect(self, peers: Iterable[int]) -> None:
        """Exchange a number with each peer, all in one symmetric group, and wait for the device.

        The first use of a peer sets its connection up and blocks the host meanwhile; a symmetric
        group cannot block one stage on another that is busy connecting elsewhere.
        """
        exchanges = [
            dist.P2POp(operation, torch.zeros(1, device=self._device), rank, group=self._group)
            for rank in map(self._rank_of, sorted(set(peers)))
            for operation in (dist.isend, dist.irecv)
        ]
        with _named("connection of neighbours"):
            for work in dist.batch_isend_irecv(exchanges) if exchanges else []:
                work.wait()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _post(
        self, what: str, operation: Callable[..., Any], tensors: Sequence[torch.Tensor], peer: int
    ) -> _Posted:
        rank = self._rank_of(peer)
        views = [as_bytes(tensor) for tensor in tensors if tensor.numel()]
        operations = [dist.P2POp(operation, view, rank, group=self._group) for view in views]
        posted = _Posted(what, operations, [])
        if self._held is not None:
            self._held.append(posted)
            return posted
        with _named(what):
            if len(views) == 1:
                posted.works.append(operation(views[0], rank, group=self._group))
            elif views:
                posted.works.extend(dist.batch_isend_irecv(operations))
        return posted

    def _rank_of(self, stage_id: int) -> int:
        return dist.get_global_rank(self._group, stage_id)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Turn what the backend raises into an error that names what was being done."""
    try:
        yield
    except RuntimeError as error:
        raise TransportError(f"{what} failed: {error}") from error
