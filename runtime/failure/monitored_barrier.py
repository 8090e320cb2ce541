"""The rendezvous: before a run begins, all ranks make sure that all have come, for the same thing.

Who has come waits for the others, and some of them may never come: they let go of the evaluator,
their process ended, or they wait elsewhere, to begin something else. Nobody who waits would learn
of it from a transfer. So all of this is on the store, and looked for once a wait takes long enough
for the courier to make its rounds.
"""

import threading
from collections import deque
from collections.abc import Mapping

from runtime.failure.report import Failure, names
from runtime.failure.store import Board, MeetingPlace
from runtime.transport.shared_memory.peer_process import has_ended
from schemas.base import Frozen

ROUNDS = 2
"""How often a rank has to say that it waits elsewhere: once it may just have been about to come."""

MOST = 64
"""Ranks that are looked for in one round."""


class Presence(Frozen):
    """What one rank says while it waits for others."""

    place: str
    """The meeting place on the job's store."""
    epoch: int
    ranks: tuple[int, ...]
    """Who meets there, by number among all processes."""
    thread: int
    """Of the process, which may wait at several places at a time."""
    task: str
    """What it waits to begin."""
    number: int
    """Grows from round to round."""


class Rendezvous:
    """One rank's wait for the others, at the beginning of a run."""

    def __init__(self, place: MeetingPlace, epoch: int, name: str, task: str) -> None:
        """Wait at `place`, for `task`.

        Args:
            place: Where.
            epoch: Of the channels there.
            name: Of the evaluator; empty: none.
            task: What is to begin, in the words of its users.
        """
        self._place, self._epoch, self._name, self.task = place, epoch, name, task
        self._thread = threading.get_ident()
        self._rounds = 0
        self._first: dict[int, Presence] = {}
        self._elsewhere: dict[tuple[str, int], tuple[tuple[int, ...], tuple[int, ...]]] = {}
        """Who meets where others wait, and who of them is absent: by place and epoch."""
        self._homes: dict[int, tuple[int | None, str]] = {}
        others = set(range(place.size)) - {place.rank}
        self._others = deque(sorted(others))
        self.over = False
        """Whether all have come."""

    def look(self) -> Failure | None:
        """What is on the store about those who have not come; a failure if some never will.

        Of many ranks some are looked for in each round.
        """
        self._others.rotate(-MOST)
        return self._who_left() or self._who_is_elsewhere()

    def _who_left(self) -> Failure | None:
        left: dict[int, str] = {}
        for rank in self._now():
            how = self._place.left(self._name, rank) if self._name else ""
            if not how and has_ended(self._home(rank)[1]):
                how = "ended its process"
            if how:
                left[rank] = how
        if not left:
            return None
        who = names([self._place.names[rank] for rank in left])
        ways = " or ".join(sorted(set(left.values())))
        return self._failure(
            "lost",
            f"{who} will not take part in {self.task}, and never again: {who} {ways}",
            gone=tuple(left),
        )

    def _who_is_elsewhere(self) -> Failure | None:
        job = self._place.job
        if job is None or self._home(self._place.rank)[0] != self._thread:
            return None
        self._rounds += 1
        mine = Presence(
            place=job.place,
            epoch=self._epoch,
            ranks=job.ranks,
            thread=self._thread,
            task=self.task,
            number=self._rounds,
        )
        job.store.set(f"waits/{job.ranks[self._place.rank]}", mine.model_dump_json())
        waiting = {r: p for r in self._now() if (p := self._presence(r)) is not None}
        at = (mine.place, mine.epoch)
        here = {r: p for r, p in waiting.items() if (p.place, p.epoch) == at}
        here[self._place.rank] = mine
        present = {job.ranks[rank] for rank in here}
        elsewhere = {  # and there, they wait for somebody who waits here
            rank: presence
            for rank, presence in waiting.items()
            if rank not in here
            and presence.thread == self._home(rank)[0]
            and present & set(presence.ranks)
        }
        if not elsewhere:
            return None
        for presence in elsewhere.values():
            absent = tuple(n for n, rank in enumerate(presence.ranks) if rank in present)
            self._elsewhere[presence.place, presence.epoch] = presence.ranks, absent
        return self._disagreement(here | elsewhere, gone=tuple(elsewhere))

    def tell(self, failure: Failure) -> bool:
        """Leave word of a disagreement where others wait; whether all of them have read it.

        Before, the channels here have to be given up: whoever has read it may come here next.
        """
        job, read = self._place.job, True
        for (place, epoch), (ranks, absent) in self._elsewhere.items():
            assert job is not None
            board = Board(MeetingPlace(job.at(place), -1, tuple(map(str, ranks))), epoch)
            there = board.publish(failure.model_copy(update={"gone": absent}))
            read = board.acknowledged(there) and read
        return read

    def _now(self) -> list[int]:
        """The ranks that this round is about."""
        return list(self._others)[:MOST]

    def _home(self, rank: int) -> tuple[int | None, str]:
        """See `MeetingPlace.home`; what is known once stays."""
        if rank not in self._homes:
            home = self._place.home(rank)
            if home[0] is None:
                return home
            self._homes[rank] = home
        return self._homes[rank]

    def _presence(self, rank: int) -> Presence | None:
        """Where a rank waits, if it has waited there for some rounds of this wait."""
        assert self._place.job is not None
        store, key = self._place.job.store, f"waits/{self._place.job.ranks[rank]}"
        if not store.check([key]):
            return None
        now = Presence.model_validate_json(store.get(key))
        first = self._first.get(rank)
        if first is None or (now.place, now.epoch, now.thread) != (
            first.place,
            first.epoch,
            first.thread,
        ):
            self._first[rank] = now
            return None
        if now.number < first.number:  # a later wait at the same place
            self._first[rank] = now
        return now if now.number >= first.number + ROUNDS else None

    def _disagreement(self, who: Mapping[int, Presence], gone: tuple[int, ...]) -> Failure:
        tasks: dict[str, list[str]] = {}
        for rank, presence in sorted(who.items()):
            tasks.setdefault(presence.task, []).append(self._place.names[rank])
        return self._failure("disagreement", different(tasks), gone=gone)

    def _failure(self, kind: str, reason: str, *, gone: tuple[int, ...]) -> Failure:
        place = self._place
        return Failure.model_validate(
            {
                "kind": kind,
                "reporter": place.rank,
                "stage": place.names[place.rank],
                "at": f"the beginning of {self.task}",
                "reason": reason,
                "gone": gone,
            }
        )


def different(tasks: Mapping[str, list[str]]) -> str:
    """One sentence on who is about to do what.

    >>> different({"evaluation": ["stage 0", "stage 1"], "save_state_dict": ["stage 2"]})
    'all stages have to do the same in the same order: stage 0 and stage 1 began evaluation, \
stage 2 began save_state_dict'
    """
    done = ", ".join(f"{names(who)} began {task}" for task, who in tasks.items())
    return f"all stages have to do the same in the same order: {done}"
