"""The board: where ranks leave word for each other while their transfers hang.

It is a few keys on the store through which the processes once found each other, reached over a
connection of its own. Every attempt of a run (an *epoch*: failures separate them) has keys of its
own, so nothing of a failed attempt is read by the next. The calls block for as long as the store
does; threads of their own make them.
"""

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from torch._C._distributed_c10d import PrefixStore, Store

from runtime.failure.position import Position
from runtime.failure.report import Failure
from schemas.base import Frozen


@dataclass(frozen=True)
class Job:
    """Some processes among all that started together."""

    store: Store
    """One that all processes of the job reach."""
    ranks: tuple[int, ...]
    """Those of the meeting place, by their number among all processes."""
    place: str
    """What the meeting place is called on the store."""

    @property
    def place_store(self) -> Store:
        """The store of the meeting place."""
        return self.at(self.place)

    def at(self, place: str) -> Store:
        """The store of any meeting place."""
        return PrefixStore(place, self.store)


@dataclass(frozen=True)
class MeetingPlace:
    """The ranks that have to hear of each other's failures, and a store that all of them reach."""

    store: Store
    rank: int
    names: tuple[str, ...]
    """What each rank is called, as `"stage 1"`."""
    job: Job | None = None
    """Where these ranks can be heard of when they meet elsewhere."""

    @property
    def size(self) -> int:
        """The number of ranks."""
        return len(self.names)

    def settle_in(self, lifeline: str) -> None:
        """Say how this process is found: the thread that made this place is expected here.

        Args:
            lifeline: Of the process, see `runtime.transport.shared_memory.peer_process`.
        """
        self.store.set(f"home/{self.rank}", f"{threading.get_ident()} {lifeline}")

    def home(self, rank: int) -> tuple[int | None, str]:
        """The thread of a rank that made its place, and its process's lifeline, if known."""
        key = f"home/{rank}"
        if not self.store.check([key]):
            return None, ""
        thread, _, lifeline = self.store.get(key).decode().partition(" ")
        return int(thread), lifeline

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


class Beat(Frozen):
    """A sign of life."""

    number: int
    """Grows from beat to beat."""
    evaluating: bool
    """Whether the rank is inside an evaluation."""
    position: Position


class Board:
    """One epoch's board, as one rank sees it."""

    def __init__(self, place: MeetingPlace, epoch: int) -> None:
        """Open the board of `epoch`."""
        self._store = PrefixStore(f"epoch{epoch}", place.store)
        self._rank, self._size = place.rank, place.size

    def publish(self, failure: Failure) -> Failure:
        """Put a failure on the board, unless there is one already; the one that is there."""
        return _failure(self._store.compare_set("failure", "", failure.model_dump_json()))

    def read(self) -> Failure | None:
        """The failure on the board."""
        return _failure(self._store.get("failure")) if self._store.check(["failure"]) else None

    def acknowledge(self) -> None:
        """Say that this rank has read the failure."""
        self._store.set(f"read/{self._rank}", "yes")

    def acknowledged(self, failure: Failure) -> bool:
        """Whether every rank that can has read the failure."""
        readers = set(range(self._size)) - set(failure.gone)
        return bool(self._store.check([f"read/{rank}" for rank in readers]))

    def beat(self, beat: Beat) -> None:
        """Leave a sign of life."""
        self._store.set(f"beat/{self._rank}", beat.model_dump_json())

    def beats(self) -> dict[int, Beat]:
        """The latest sign of life of every rank that has left one in this epoch."""
        keys = {rank: f"beat/{rank}" for rank in range(self._size)}
        if not self._store.check(list(keys.values())):
            keys = {rank: key for rank, key in keys.items() if self._store.check([key])}
        values = self._values(list(keys.values()))
        return {r: Beat.model_validate_json(v) for r, v in zip(keys, values, strict=True)}

    def _values(self, keys: Sequence[str]) -> Sequence[bytes]:
        if keys and self._store.has_extended_api():  # type: ignore[attr-defined]
            return self._store.multi_get(list(keys))
        return [self._store.get(key) for key in keys]


def _failure(value: bytes | str) -> Failure:
    return Failure.model_validate_json(value)
