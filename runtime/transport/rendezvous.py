"""The rendezvous of a transport's ranks: a store that all reach, while their transfers may hang."""

import threading
from contextlib import suppress
from dataclasses import dataclass

from torch._C._distributed_c10d import PrefixStore, Store


@dataclass(frozen=True)
class JobStore:
    """The store of all processes that started together, and the part that some of them use."""

    store: Store
    ranks: tuple[int, ...]
    """Those that meet, by their number among all processes."""
    prefix: str
    """Of the keys of these ranks, on the store."""

    @property
    def own(self) -> Store:
        """The part of these ranks."""
        return self.part(self.prefix)

    def part(self, prefix: str) -> Store:
        """The part of any ranks."""
        return PrefixStore(prefix, self.store)


@dataclass(frozen=True)
class RendezvousStore:
    """Ranks that have to learn of each other's failures, and a store that all of them reach."""

    store: Store
    rank: int
    names: tuple[str, ...]
    """What each rank is called, as `"stage 1"`."""
    job: JobStore | None = None
    """Where it is found out that these ranks wait for each other in different evaluators."""

    @property
    def size(self) -> int:
        """The number of ranks."""
        return len(self.names)

    def register(self, liveness: str) -> None:
        """Say which thread of which process this rank is: the one that calls this.

        Args:
            liveness: Where the process can be probed, see
                `runtime.transport.shared_memory.peer_process`.
        """
        self.store.set(f"process/{self.rank}", f"{threading.get_ident()} {liveness}")

    def registered(self, rank: int) -> tuple[int | None, str]:
        """The thread of a rank, and where its process can be probed, if known."""
        key = f"process/{rank}"
        if not self.store.check([key]):
            return None, ""
        thread, _, liveness = self.store.get(key).decode().partition(" ")
        return int(thread), liveness

    def next_evaluator(self) -> str:
        """A name for this rank's next evaluator over these ranks, the same on all of them."""
        store, over = self.store, ""
        if self.job is not None:
            store, over = self.job.store, "-".join(map(str, self.job.ranks))
        return f"evaluator {store.add(f'evaluators/{over}/{self.rank}', 1)}"

    def leave(self, name: str, how: str) -> None:
        """Say that this rank will not use the evaluator of that name again.

        Nothing but one message: the store may be gone by now, and torch prints a warning about
        everything that it cannot send.
        """
        with suppress(RuntimeError):
            self.store.set(f"left/{name}/{self.rank}", how)

    def left(self, name: str, rank: int) -> str:
        """How it came that a rank will not use the evaluator of that name again; empty: it may."""
        key = f"left/{name}/{rank}"
        return self.store.get(key).decode() if self.store.check([key]) else ""
