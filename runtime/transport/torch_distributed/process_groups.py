"""Process groups that can be thrown away and made anew.

What unblocks a rank that waits in a group also ends the group, and messages of a failed run would
be received by the next. So a pipeline does not run on the caller's group but on groups of its own
over the same ranks, and after a failure on the next ones. The caller's group stays whole.

The groups are made as `torch.distributed._dist2` makes them, not by `new_group`, which would need
every process of the world, those of other pipelines too.
"""

from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

from runtime.transport.protocol import TransportError
from runtime.transport.torch_distributed.torch_version import require_torch

require_torch()

RESERVED_TAG = 2**31 - 1
"""A tag that no transfer has."""

KINDS = ("gloo", "nccl")
"""Backends whose groups can be made here."""

CONNECT_TIMEOUT = timedelta(seconds=60)
"""The guard opens a group when all ranks are there."""

UNGUARDED_TIMEOUT = timedelta(minutes=30)
"""How long a wait may take in a group that no guard has opened; the default of gloo."""


LONGEST_TIMEOUT = timedelta(days=24)
"""More milliseconds do not fit where some of them end up."""


def bounded(seconds: float) -> timedelta:
    """A timeout that every backend can hold.

    >>> bounded(90), bounded(float("inf"))
    (datetime.timedelta(seconds=90), datetime.timedelta(days=24))
    """
    return timedelta(seconds=min(seconds, LONGEST_TIMEOUT.total_seconds()))


def backend_of(group: dist.ProcessGroup, device: torch.device) -> str:
    """The name of the backend that moves a group's tensors on `device`; empty: there is none.

    The name with which a group was initialised may be one for several devices
    (`"cpu:gloo,cuda:nccl"`), or none.
    """
    try:
        return str(group._get_backend(device).name())
    except RuntimeError:  # none for this device; or one of a user's own, which is one for all
        named = str(dist.get_backend(group))
        return "" if named in (*KINDS, "undefined") or ":" in named else named


def default_device(group: dist.ProcessGroup) -> torch.device:
    """The kind of device that a group is for: a GPU if it has NCCL and there is one, else a CPU."""
    gpu = torch.device("cuda")
    on_gpu = torch.cuda.is_available() and backend_of(group, gpu) == "nccl"
    return gpu if on_gpu else torch.device("cpu")


class RenewableGroup:
    """A process group over the ranks of another one, and groups over pairs of them."""

    def __init__(
        self,
        parent: dist.ProcessGroup,
        store: Store,
        device: torch.device,
        ranks: Sequence[int] | None = None,
    ) -> None:
        """Prepare; nothing is connected before it is used.

        Args:
            parent: Its ranks and its backend are meant.
            store: Where the ranks of `parent` find each other, perhaps others of other groups too.
            device: Where tensors will be.
            ranks: Those of `parent`, in the order that they have here; default: theirs.

        Raises:
            TransportError: the backend knows no other order.
        """
        known = dist.get_process_group_ranks(parent)
        ranks = known if ranks is None else list(ranks)
        self.rank, self.size = ranks.index(known[parent.rank()]), len(ranks)
        self._parent, self._device = parent, device
        self._kind = backend_of(parent, device)
        if ranks != known and self._kind not in KINDS:
            raise TransportError(
                f"the ranks {ranks} are in another order than their process group has ({known}), "
                f"which works with {' and '.join(KINDS)}, not with {self._kind or 'no backend'}"
            )
        self.batches_on = device if self._kind == "nccl" else None
        """The device of a group in which several transfers have to be one operation."""
        members = "-".join(map(str, ranks))
        self._store: Store | None = PrefixStore(f"group {members}", store)
        self._generation = 0
        self._timeout = self._connect = UNGUARDED_TIMEOUT
        self._group: dist.ProcessGroup | None = None
        self._edges: list[dist.ProcessGroup] = []
        self._abandoned = False

    @property
    def is_open(self) -> bool:
        """Whether there is a group to use."""
        return self._group is not None and not self._abandoned

    @property
    def group(self) -> dist.ProcessGroup:
        """The group; all ranks have to ask for it, the first time.

        Raises:
            TransportError: it has been abandoned, and none has been opened since.
        """
        if self._store is None:
            raise TransportError("the process group was closed")
        if self._abandoned:
            raise TransportError("the process group was aborted after a failure")
        if self._group is None:
            self._group = self._new("all", self.rank, self.size)
        return self._group

    def open(self, generation: int, timeout: timedelta) -> None:
        """Make the group of `generation`, unless there is one; all ranks have to.

        Args:
            generation: How often the group has been abandoned.
            timeout: How long a wait in it may take.

        Raises:
            TransportError: a backend that this module cannot make groups of has failed before.
        """
        if self.is_open:
            return
        if self._abandoned and self._kind not in KINDS:
            raise TransportError(
                f"a group of backend {self._kind} failed, needed one of {KINDS} to begin again"
            )
        self._generation, self._timeout, self._connect = generation, timeout, CONNECT_TIMEOUT
        self._group, self._abandoned = None, False  # it may be abandoned in the making
        self._edges.clear()
        self._group = self._new("all", self.rank, self.size)

    def edge(self, source: int, destination: int) -> dist.ProcessGroup:
        """A group for the channel from one rank to another, 0 and 1 in it; both have to ask.

        Raises:
            TransportError: this module cannot make groups of the backend.
        """
        if self._kind not in KINDS:
            raise TransportError(f"the backend is {self._kind}, needed one of {KINDS}")
        rank = (source, destination).index(self.rank)
        edge = self._new(f"{source} to {destination}", rank, 2)
        self._edges.append(edge)
        return edge

    def all_gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's tensor on the CPU, all of one size, by rank."""
        own = tensor.to(self._device)
        gathered = [torch.empty_like(own) for _ in range(self.size)]
        self.group.allgather([gathered], [own]).wait()
        return [tensor.cpu() for tensor in gathered]

    def abandon(self) -> None:
        """End every wait in the groups, from any thread; nothing can be sent over them any more."""
        self._abandoned = True
        for group in (self._group, *self._edges):
            if group is None or group is self._parent:
                continue
            if self._kind == "gloo":
                _close_pairs(group)
            else:
                group.abort()

    def close(self) -> None:
        """Let go of the groups and of the store; nothing can be done here any more."""
        if self._kind == "nccl" and not self._abandoned:
            for group in (self._group, *self._edges):
                with suppress(RuntimeError):  # let go of without it, a communicator aborts
                    if group is not None and group is not self._parent:
                        group.shutdown()
        self._abandoned, self._store, self._group = True, None, None
        self._edges.clear()

    def _new(self, name: str, rank: int, size: int) -> dist.ProcessGroup:
        if self.size == 1 or self._kind not in KINDS:
            return self._parent
        if self._store is None:
            raise TransportError("the process group was closed")
        store = PrefixStore(f"generation {self._generation}, {name}", self._store)
        group = dist.ProcessGroup(store, rank, size)
        if self._kind == "gloo":
            gloo = dist.ProcessGroupGloo(store, rank, size, self._connect)
            gloo._set_default_timeout(self._timeout)
            group._set_default_backend(dist.ProcessGroup.BackendType.GLOO)
            group._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, gloo)
        else:
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = self._timeout
            nccl = dist.ProcessGroupNCCL(store, rank, size, options)
            nccl._set_sequence_number_for_group()
            nccl.eager_connect_single_device(self._device)
            group._set_default_backend(dist.ProcessGroup.BackendType.NCCL)
            group._register_backend(self._device, dist.ProcessGroup.BackendType.NCCL, nccl)
        return group


def _close_pairs(group: dist.ProcessGroup) -> None:
    """Close all connections of a gloo group, so that whoever waits on them raises at once.

    A receive that times out does it. But one on a connection that the peer has closed already
    fails before its time, and leaves the others open: hence one on each.
    """
    probe = torch.zeros(1, dtype=torch.uint8)
    for peer in set(range(group.size())) - {group.rank()}:
        with suppress(RuntimeError):
            group.recv([probe], peer, RESERVED_TAG).wait(timedelta(milliseconds=1))
