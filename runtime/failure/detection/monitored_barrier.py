"""The monitored barrier: before a run begins, all ranks have come, and for the same thing.

Who has come waits for the others, and some of them may never come: they let go of the evaluator,
their process ended, or they wait at another barrier, to begin something else. Nobody who waits
would learn of it from a transfer. So all of this is in the store, and looked for once a wait takes
long enough for a heartbeat.
"""

import threading
from collections import deque
from collections.abc import Mapping

from runtime.failure.report import Failure, Kind, names
from runtime.failure.store import FailureStore, parse_stored
from runtime.transport.rendezvous import RendezvousStore
from runtime.transport.store_reader import StoreReader
from schemas.base import Frozen

TICKS = 2
"""How often a rank has to say that it waits elsewhere: once it may just have been about to come."""

RANKS_PER_TICK = 64
"""Ranks that are looked for in one tick."""


class Waiting(Frozen):
    """What one rank leaves in the store while it waits for others."""

    prefix: str
    """Of the ranks that meet, on the job's store."""
    generation: int
    ranks: tuple[int, ...]
    """Who meets there, by number among all processes."""
    thread: int
    """Of the process, which may wait at several barriers at a time."""
    task: str
    """What it waits to begin."""
    number: int
    """Grows from tick to tick."""

    @property
    def barrier(self) -> tuple[str, int]:
        """Where it waits."""
        return self.prefix, self.generation


class MonitoredBarrier:
    """One rank's wait for the others, at the beginning of a run."""

    def __init__(self, ranks: RendezvousStore, generation: int, name: str, task: str) -> None:
        """Wait for `ranks`, to begin `task`.

        Args:
            ranks: Who meets.
            generation: Of their channels.
            name: Of the evaluator; empty: none.
            task: What is to begin, in the words of its users.
        """
        self._ranks, self._generation, self._name, self.task = ranks, generation, name, task
        self._thread = threading.get_ident()
        self._ticks = 0
        self._first: dict[int, Waiting] = {}
        self._elsewhere: dict[tuple[str, int], tuple[tuple[int, ...], tuple[int, ...]]] = {}
        """Who meets at other barriers, and who of them is absent there: by barrier."""
        self._left = StoreReader(ranks.store)
        self._waits = None if ranks.job is None else StoreReader(ranks.job.store)
        self._others = deque(sorted(set(range(ranks.size)) - {ranks.rank}))
        self.over = False
        """Whether all have come."""

    def look(self) -> Failure | None:
        """What is in the store about those who have not come; a failure if some never will.

        Of many ranks some are looked for in each tick.
        """
        self._others.rotate(-RANKS_PER_TICK)
        self._ranks.learn([self._ranks.rank, *self._looked_for()])
        return self._who_left() or self._who_is_elsewhere()

    def _who_left(self) -> Failure | None:
        keys = {self._ranks.left_key(self._name, rank): rank for rank in self._looked_for()}
        said = self._left.read(list(keys) if self._name else [])
        ways = {keys[key]: self._ranks.how_left(self._name, value) for key, value in said.items()}
        left = {rank: how for rank, how in ways.items() if how}
        ended = [r for r in self._looked_for() if r not in left and self._ranks.has_ended(r)]
        left.update(dict.fromkeys(ended, "ended its process"))
        if not left:
            return None
        who = names([self._ranks.names[rank] for rank in left])
        how = " or ".join(sorted(set(left.values())))
        return self._failure(
            "lost",
            f"{who} will not take part in {self.task}, and never again: {who} {how}",
            gone=tuple(left),
        )

    def _who_is_elsewhere(self) -> Failure | None:
        job = self._ranks.job
        if job is None or self._ranks.registered(self._ranks.rank)[0] != self._thread:
            return None
        self._ticks += 1
        own = Waiting(
            prefix=job.prefix,
            generation=self._generation,
            ranks=job.ranks,
            thread=self._thread,
            task=self.task,
            number=self._ticks,
        )
        job.store.set(f"waits/{job.ranks[self._ranks.rank]}", own.model_dump_json())
        assert self._waits is not None
        keys = {f"waits/{job.ranks[rank]}": rank for rank in self._looked_for()}
        said = self._waits.read(list(keys))
        found = {keys[key]: parse_stored(Waiting, key, text) for key, text in said.items()}
        waiting = {rank: there for rank, there in found.items() if self._has_waited(rank, there)}
        here = {rank: there for rank, there in waiting.items() if there.barrier == own.barrier}
        here[self._ranks.rank] = own
        present = {job.ranks[rank] for rank in here}
        elsewhere = {  # and there, they wait for a rank that waits here
            rank: there
            for rank, there in waiting.items()
            if rank not in here
            and there.thread == self._ranks.registered(rank)[0]
            and present & set(there.ranks)
        }
        if not elsewhere:
            return None
        for there in elsewhere.values():
            absent = tuple(n for n, rank in enumerate(there.ranks) if rank in present)
            self._elsewhere[there.barrier] = there.ranks, absent
        return self._disagreement(here | elsewhere, gone=tuple(elsewhere))

    def tell(self, failure: Failure) -> bool:
        """Publish a disagreement at the barriers of others; whether all of them have read it.

        Before, the channels here have to be aborted: whoever has read it may come here next.
        """
        job, read = self._ranks.job, True
        for (prefix, generation), (ranks, absent) in self._elsewhere.items():
            assert job is not None
            others = RendezvousStore(job.part(prefix), -1, tuple(map(str, ranks)))
            store = FailureStore(others, generation)
            there = store.publish(failure.model_copy(update={"gone": absent}))
            read = store.acknowledged(there) and read
        return read

    def _looked_for(self) -> list[int]:
        """The ranks that this tick is about."""
        return list(self._others)[:RANKS_PER_TICK]

    def _has_waited(self, rank: int, now: Waiting) -> bool:
        """Whether a rank has waited where it waits now for some ticks of this wait."""
        first = self._first.get(rank)
        if first is None or (now.barrier, now.thread) != (first.barrier, first.thread):
            self._first[rank] = now
            return False
        if now.number < first.number:  # a later wait at the same barrier
            self._first[rank] = now
        return now.number >= first.number + TICKS

    def _disagreement(self, who: Mapping[int, Waiting], gone: tuple[int, ...]) -> Failure:
        tasks: dict[str, list[str]] = {}
        for rank, waiting in sorted(who.items()):
            tasks.setdefault(waiting.task, []).append(self._ranks.names[rank])
        return self._failure("disagreement", different(tasks), gone=gone)

    def _failure(self, kind: Kind, reason: str, *, gone: tuple[int, ...]) -> Failure:
        return Failure(
            kind=kind,
            reporter=self._ranks.rank,
            name=self._ranks.names[self._ranks.rank],
            at=f"the beginning of {self.task}",
            reason=reason,
            gone=gone,
        )


def different(tasks: Mapping[str, list[str]]) -> str:
    """One sentence on who is about to do what.

    >>> different({"evaluation": ["stage 0", "stage 1"], "save_state_dict": ["stage 2"]})
    'all stages have to do the same in the same order: stage 0 and stage 1 began evaluation, \
stage 2 began save_state_dict'
    """
    done = ", ".join(f"{names(who)} began {task}" for task, who in tasks.items())
    return f"all stages have to do the same in the same order: {done}"
