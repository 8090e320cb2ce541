"""The failure store: where ranks leave failures and heartbeats while their transfers hang.

It is a few keys on the store through which the processes once found each other, reached over a
connection of its own. Every attempt of a run (a *generation*: failures separate them) has keys of
its own, so nothing of a failed attempt is read by the next. The calls block for as long as the
store does; threads of their own make them.
"""

from collections.abc import Iterable
from typing import TypeVar

from pydantic import ValidationError

from runtime.failure.detection.instruction_pointer import RankStatus
from runtime.failure.report import Failure
from runtime.transport.private_store import part_of
from runtime.transport.rendezvous import RendezvousStore
from runtime.transport.store_reader import StoreReader
from schedcc.io.plain_text import SentenceError, visible
from schemas.base import Frozen

Stored = TypeVar("Stored", bound=Frozen)


class DamagedValueError(SentenceError):
    """What a rank has left in the store is not what ranks leave there."""


def parse_stored(kind: type[Stored], key: str, value: bytes | str) -> Stored:
    """What ranks have stored under a key.

    Raises:
        DamagedValueError: it is something else.
    """
    try:
        return kind.model_validate_json(value)
    except ValidationError as error:
        from schedcc.io.plan_files import explain  # with all that reads plans

        why = explain(error)
        raise DamagedValueError(f"{key} in the store is no {kind.__name__}: {why}") from error


class Heartbeat(Frozen):
    """A sign of life."""

    number: int
    """Grows from heartbeat to heartbeat."""
    evaluating: bool
    """Whether the rank is inside an evaluation."""
    status: RankStatus


class FailureStore:
    """One generation's part of the store, as one rank sees it."""

    def __init__(self, rendezvous: RendezvousStore, generation: int) -> None:
        """Open the part of `generation`."""
        self._store = part_of(rendezvous.store, f"generation {generation}")
        self._rank, self._size = rendezvous.rank, rendezvous.size
        self._reader = StoreReader(self._store)

    def publish(self, failure: Failure) -> Failure:
        """Publish a failure, unless there is one already; the one that is there."""
        return _failure(self._store.compare_set("failure", "", failure.model_dump_json()))

    def read(self) -> Failure | None:
        """The failure that was published."""
        return _failure(self._store.get("failure")) if self._store.check(["failure"]) else None

    def acknowledge(self) -> None:
        """Say that this rank has read the failure."""
        self._store.set(f"read/{self._rank}", "yes")

    def acknowledged(self, failure: Failure) -> bool:
        """Whether every rank that can has read the failure."""
        readers = set(range(self._size)) - set(failure.gone)
        return bool(self._store.check([f"read/{rank}" for rank in readers]))

    def publish_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Leave a sign of life."""
        self._store.set(f"heartbeat/{self._rank}", heartbeat.model_dump_json())

    def heartbeats(self, ranks: Iterable[int]) -> dict[int, Heartbeat]:
        """The latest heartbeat of each of `ranks` that has left one in this generation."""
        keys = {f"heartbeat/{rank}": rank for rank in ranks}
        found = self._reader.read(list(keys))
        return {keys[key]: parse_stored(Heartbeat, key, value) for key, value in found.items()}

    def forget(self) -> None:
        """Delete what this rank has left there, when all ranks have gone on to a later generation.

        Not where a failure is read that others have published: they have all read it by then.
        """
        for key in (f"heartbeat/{self._rank}", f"read/{self._rank}"):
            self._store.delete_key(key)
        if self._rank == 0:
            self._store.delete_key("failure")


def _failure(value: bytes | str) -> Failure:
    """A failure as anybody may print it: others can write to the store of several hosts."""
    failure = parse_stored(Failure, "failure", value)
    texts = {"name", "at", "error", "reason", "traceback"}
    shown = {n: visible(text, lines=True) for n, text in failure.model_dump(include=texts).items()}
    return failure.model_copy(update=shown)
