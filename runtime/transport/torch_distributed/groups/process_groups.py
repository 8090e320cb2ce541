"""Process groups that can be thrown away and made anew.

What unblocks a rank that waits in a group also ends the group, and messages of a failed run would
be received by the next. So a pipeline does not run on the caller's group but on groups of its own
over the same ranks, and after a failure on the next ones. The caller's group stays whole.
"""

import os
import weakref
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

from runtime.device import POLL_SECONDS, Clock
from runtime.transport.protocol import TransportError
from runtime.transport.torch_distributed.groups import nccl
from runtime.transport.torch_distributed.groups.abort import (
    Calls,
    Ending,
    abort_gloo,
    abort_nccl,
    shut_down,
)
from runtime.transport.torch_distributed.groups.backends import (
    CONNECT_TIMEOUT,
    KINDS,
    UNCONNECTED,
    Timeouts,
    backend_of,
    new_group,
)
from runtime.transport.torch_distributed.groups.nccl_settings import NcclSettings

_UNGUARDED = nullcontext()


class RenewableGroup:
    """A process group over the ranks of another one, and groups over pairs of them."""

    def __init__(
        self,
        parent: dist.ProcessGroup,
        store: Store,
        device: torch.device,
        ranks: Sequence[int] | None = None,
        settings: NcclSettings | None = None,
    ) -> None:
        """Prepare; nothing is connected before it is used.

        Args:
            parent: Its ranks, or some of them, and its backend are meant.
            store: Where the ranks of `parent` find each other, perhaps others of other groups too.
            device: Where tensors will be.
            ranks: Those of `parent`, in the order that they have here; default: all, in theirs.
            settings: Of communicators, the same on all ranks.

        Raises:
            TransportError: the backend knows no other ranks or order.
        """
        known = dist.get_process_group_ranks(parent)
        ranks = known if ranks is None else list(ranks)
        self.rank, self.size = ranks.index(known[parent.rank()]), len(ranks)
        self._parent, self._device = parent, device
        self._settings = settings or NcclSettings()
        self._kind = backend_of(parent, device)
        if ranks != known and self._kind not in KINDS:
            raise TransportError(
                f"the ranks {ranks} are in another order than their process group has ({known}), "
                f"which works with {' and '.join(KINDS)}, not with {self._kind or 'no backend'}"
            )
        self._is_nccl = self._kind == "nccl"
        self._makes_groups = self.size > 1 and self._kind in KINDS
        self.batches_on = device if self._is_nccl else None
        """The device of a group in which several transfers have to be one operation."""
        members = "-".join(map(str, ranks))
        self._store: Store | None = PrefixStore(f"group {members}", store)
        self._connection: Store | None = None
        """Of the store, for the making of groups: who waits on one keeps heartbeats from it."""
        self._generation, self._timeouts = 0, Timeouts()
        self._group: dist.ProcessGroup | None = None
        self._made: list[dist.ProcessGroup] = []
        """The groups of this generation, without the parent."""
        self._told: list[tuple[str, int]] = []
        """Groups of this generation that had an address of this rank, and its number in them."""
        self._abandoned = False
        self._calls = Calls()
        self._ending: Ending | None = None
        self._clock = Clock(device)
        # Let go of without it, a communicator warns and aborts, at the end of the program too.
        self._shut_down = weakref.finalize(self, shut_down, os.getpid(), self._is_nccl, self._made)

    @property
    def is_unconnected(self) -> bool:
        """Whether nothing goes through the group, on which its ranks only count each other."""
        return self._kind == UNCONNECTED

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
        self.require_usable()
        if self._group is None:
            self._group = self._make("all", self.rank, self.size)
        return self._group

    def require_usable(self) -> None:
        """Return if the groups were neither closed nor abandoned.

        Raises:
            TransportError: they were; what an operation has brought may be anything.
        """
        if self._store is None:
            raise TransportError("the process group was closed")
        if self._abandoned:
            raise TransportError("the process group was aborted after a failure")

    def call(self) -> AbstractContextManager[None]:
        """Inside, operations may be begun; the groups are not aborted meanwhile.

        Raises:
            TransportError: they have been aborted, or NCCL cannot be used any more.
        """
        self.require_usable()
        if not self._is_nccl:
            return _UNGUARDED
        nccl.require_sound()
        return self._calls.one(self.require_usable)

    def wait(self, work: dist.Work) -> None:
        """Make what follows come after an operation: the host on gloo, the stream on NCCL.

        Raises:
            TransportError: the group has been aborted, after which NCCL's waits raise nothing.
        """
        if self._is_nccl:
            work.block_current_stream()  # `wait` blocks the host: see `nccl_settings`
        else:
            work.wait()
        self.require_usable()

    def finish(self, works: Iterable[dist.Work] = ()) -> None:
        """Wait on the host for operations, and for all that the device was given before.

        Raises:
            TransportError: the group has been aborted.
        """
        for work in works:
            self.wait(work)
        self._clock.wait(self.require_usable)

    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the host on the device; see `Clock.upload`."""
        return self._clock.upload(tensor)

    def download(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the device in the host's memory; see `Clock.download`.

        Raises:
            TransportError: the group has been aborted.
        """
        return self._clock.download(tensor, self.require_usable)

    def open(self, generation: int, timeout: timedelta) -> None:
        """Make the group of `generation`, unless there is one; all ranks have to.

        Args:
            generation: How often the group has been abandoned.
            timeout: How long a wait in it may take.

        Raises:
            TransportError: a backend that this module cannot make groups of has failed before, or
                NCCL cannot be used any more.
        """
        if self.is_open:
            return
        if self._abandoned and self._kind not in (*KINDS, UNCONNECTED):
            raise TransportError(
                f"a group of backend {self._kind} failed, needed one of {KINDS} to begin again"
            )
        if self._is_nccl:
            nccl.require_sound()
        if self._ending and not self._ending.over(CONNECT_TIMEOUT.total_seconds()):
            raise TransportError(
                f"communicators on {self._device} are still being aborted after "
                f"{CONNECT_TIMEOUT.total_seconds():g} s: start all processes again"
            )
        self._forget_addresses()
        self._generation, self._timeouts = generation, Timeouts(CONNECT_TIMEOUT, timeout)
        self._group, self._abandoned, self._ending = None, False, None  # or abandoned in the making
        self._made.clear()
        self._group = self._make("all", self.rank, self.size)

    def _forget_addresses(self) -> None:
        """Delete what this rank told of itself for groups that all ranks have abandoned."""
        for name, rank in self._told:
            if self._kind == "gloo" and self._store is not None:
                self._store.delete_key(f"generation {self._generation}, {name}/0/{rank}")
        self._told.clear()

    def edge(self, source: int, destination: int) -> dist.ProcessGroup:
        """A group for the channel from one rank to another, 0 and 1 in it; both have to ask.

        Raises:
            TransportError: this module cannot make groups of the backend.
        """
        if self._kind not in KINDS:
            raise TransportError(f"the backend is {self._kind}, needed one of {KINDS}")
        rank = (source, destination).index(self.rank)
        return self._make(f"{source} to {destination}", rank, 2)

    def all_gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's tensor on the CPU, all of one size, by rank.

        Raises:
            TransportError: the group has been aborted.
        """
        own = self.upload(tensor)
        gathered = [torch.empty_like(own) for _ in range(self.size)]
        group = self.group
        with self.call():
            work = group.allgather([gathered], [own])
        self.finish([work])
        return [*self.download(torch.stack(gathered))] if self._is_nccl else gathered

    def abandon(self) -> None:
        """End every wait in the groups, from any thread; nothing can be sent over them any more."""
        abandon_together([self])

    def close(self) -> None:
        """Let go of the groups and of the store; nothing can be done here any more."""
        if not self._abandoned:
            self._shut_down()
        self._abandoned, self._store, self._group, self._connection = True, None, None, None
        self._made.clear()

    def _make(self, name: str, rank: int, size: int) -> dist.ProcessGroup:
        group = self._new(name, rank, size)
        if group is not self._parent:
            self._made.append(group)
            if self._abandoned:  # in the making, by another thread
                abandon_together([self])
        return group

    def _new(self, name: str, rank: int, size: int) -> dist.ProcessGroup:
        """Make a group in a thread: who connects to a rank that died comes back late, or never."""
        if not self._makes_groups:
            return self._parent
        if self._store is None:
            raise TransportError("the process group was closed")
        self._told.append((name, rank))
        store, connection, timeouts = self._store, self._connection, self._timeouts
        prefix = f"generation {self._generation}, {name}"
        made: list[tuple[Store, dist.ProcessGroup]] = []

        def make() -> None:  # without a look at what changes: it may end in a later generation
            own: Store = connection or store.clone()  # type: ignore[attr-defined]
            where = PrefixStore(prefix, own), rank, size, self._device
            made.append((own, new_group(self._kind, *where, timeouts, self._settings)))

        making = Ending("schedcc connects", [make])
        try:
            while not making.over(POLL_SECONDS):
                self.require_usable()
        except BaseException:  # Ctrl-C, too
            self._connection = None  # the thread may wait on it for as long as a group may take
            raise
        if making.errors:
            raise making.errors[0]
        self._connection, group = made[0]
        return group


def abandon_together(renewables: Sequence[RenewableGroup]) -> None:
    """Abandon several groups: on NCCL all their communicators are aborted at once."""
    for renewable in renewables:
        renewable._abandoned = True
    on_nccl = [renewable for renewable in renewables if renewable._is_nccl]
    groups = [group for renewable in on_nccl for group in renewable._made]
    if groups:
        ending = abort_nccl(groups, [renewable._calls for renewable in on_nccl])
        for renewable in on_nccl:
            renewable._ending = ending
            renewable._made.clear()
    for renewable in renewables:
        if renewable._kind == "gloo":
            for group in renewable._made:
                abort_gloo(group)
