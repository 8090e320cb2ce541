"""The rendezvous of a transport's ranks: a store that all reach, while their transfers may hang."""

import re
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from runtime.transport.peer_process import PeerProcesses, connectable, remote_place
from runtime.transport.private_store import AnyStore, part_of
from runtime.transport.store_reader import StoreReader

MOST_LEFT = 16
"""Evaluators of a rank of which the store knows whether they were left."""

LEAVE_SECONDS = 0.5
"""How long a process that ends waits for its turn to say so."""

_ADDRESS = r"[0-9a-fA-F.:]+(?:%[!-.0-~]+)?"  # no name, which somebody would have to be asked for
_REGISTERED = re.compile(rf"([0-9]{{1,20}}) ((?:[^/\n]*/[^/\n]*/(?:{_ADDRESS} ([0-9]{{1,5}}))?)?)")


@dataclass(frozen=True)
class JobStore:
    """The store of all processes that started together, and the part that some of them use."""

    store: AnyStore
    ranks: tuple[int, ...]
    """Those that meet, by their number among all processes."""
    prefix: str
    """Of the keys of these ranks, on the store."""

    @property
    def own(self) -> AnyStore:
        """The part of these ranks."""
        return self.part(self.prefix)

    def part(self, prefix: str) -> AnyStore:
        """The part of any ranks."""
        return part_of(self.store, prefix)


@dataclass(frozen=True)
class RendezvousStore:
    """Ranks that have to learn of each other's failures, and a store that all of them reach."""

    store: AnyStore
    rank: int
    names: tuple[str, ...]
    """What each rank is called, as `"rank 1"`."""
    place: str = "the store"
    """Where it is, for messages."""
    port: tuple[str, int] | None = None
    """Its address and port, if it has one."""
    job: JobStore | None = None
    """Where it is found out that these ranks wait for each other in different evaluators."""
    turn: threading.Lock = field(default_factory=threading.Lock, compare=False)
    """Held by a thread that asks the store again and again: where the store is cut off, whoever
    else asks over the same connection waits behind it."""
    processes: PeerProcesses = field(default_factory=PeerProcesses, compare=False)
    """Of the ranks, to be probed."""
    _registered: dict[int, tuple[int | None, str]] = field(default_factory=dict, compare=False)
    """What ranks have said, once and for all."""

    @property
    def size(self) -> int:
        """The number of ranks."""
        return len(self.names)

    def register(self, liveness: str) -> None:
        """Say which thread of which process this rank is: the one that calls this.

        Args:
            liveness: Where the process can be probed, see
                `runtime.transport.peer_process`.
        """
        self.store.set(f"process/{self.rank}", f"{threading.get_ident()} {liveness}")

    def learn(self, ranks: Iterable[int]) -> None:
        """Find out what some ranks have registered, as far as that is not known."""
        keys = {f"process/{rank}": rank for rank in ranks if rank not in self._registered}
        for key, value in StoreReader(self.store).read(list(keys)).items():
            self._registered[keys[key]] = _registration(value)

    def registered(self, rank: int) -> tuple[int | None, str]:
        """The thread of a rank, and where its process can be probed, if that was learnt."""
        return self._registered.get(rank, (None, ""))

    def has_ended(self, rank: int) -> bool:
        """Whether the process of a rank has certainly ended."""
        return self.processes.has_ended(self.registered(rank)[1])

    def has_ended_here(self, rank: int) -> bool:
        """The same of a process of this host, without asking the store."""
        return self.processes.has_ended_here(self.registered(rank)[1])

    def is_reached(self, rank: int) -> bool:
        """Whether it would be known if the process of a rank had ended, as far as it can be."""
        return self.processes.reached(self.registered(rank)[1])

    def are_connectable(self, ranks: Iterable[int]) -> bool:
        """Whether a connection to one of some ranks on other hosts can be made now."""
        places = (remote_place(self.registered(rank)[1]) for rank in ranks)
        return connectable([place for place in places if place is not None])

    def is_connectable(self) -> bool:
        """Whether a connection to the store can be made now, if it has a port."""
        return self.port is not None and connectable([self.port])

    def next_evaluator(self) -> str:
        """A name for this rank's next evaluator over these ranks, the same on all of them."""
        store, over = self.store, ""
        if self.job is not None:
            store, over = self.job.store, "-".join(map(str, self.job.ranks))
        name = f"evaluator {store.add(f'evaluators/{over}/{self.rank}', 1)}"
        self.store.set(*self._left(name, ""))  # found at once by whoever looks
        return name

    def leave(self, name: str, how: str) -> None:
        """Say that this rank will not use the evaluator of that name again.

        Nothing but one message: the store may be gone by now, and torch prints a warning about
        everything that it cannot send. Not said if the store has not answered another thread.
        """
        if not self.turn.acquire(timeout=LEAVE_SECONDS):
            return
        with suppress(RuntimeError):
            self.store.set(*self._left(name, how))
        self.turn.release()

    @staticmethod
    def left_key(name: str, rank: int) -> str:
        """Where it is said how it came that a rank will not use the evaluator of that name again.

        See `how_left`. Names that are far apart share a key, so that there are not more and more.
        """
        number = name.rpartition(" ")[2]
        slot = int(number) % MOST_LEFT if number.isdecimal() else name
        return f"left/{slot}/{rank}"

    @staticmethod
    def how_left(name: str, value: bytes) -> str:
        """How it came, from the value of that key; empty: it may be used."""
        said, _, how = value.decode("utf-8", "replace").partition("\n")
        return how if said == name else ""

    def _left(self, name: str, how: str) -> tuple[str, str]:
        return self.left_key(name, self.rank), f"{name}\n{how}"


def _registration(value: bytes) -> tuple[int | None, str]:
    """What `register` has said; nothing, if that is not what is there."""
    said = _REGISTERED.fullmatch(value.decode("utf-8", "replace"))
    if said is None or int(said[3] or 0) >= 2**16:
        return None, ""
    return int(said[1]), said[2]
