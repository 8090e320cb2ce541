"""Heartbeats: a task that speaks with the failure store for this rank, in a thread of its own.

No other thread touches the store during a run, because a store whose host is stopped does not
answer: then this thread hangs, and the others notice that it does.
"""

import time
from collections import deque

from runtime.failure.detection.instruction_pointer import InstructionPointer
from runtime.failure.detection.monitored_barrier import MonitoredBarrier
from runtime.failure.detection.periodic import PeriodicThread
from runtime.failure.report import Failure, names
from runtime.failure.state import FailureState
from runtime.failure.store import DamagedValueError, FailureStore, Heartbeat
from runtime.transport.rendezvous import RendezvousStore

INTERVAL = 0.1
"""Seconds between two ticks."""

FAST_INTERVAL = 0.01
"""Seconds between two ticks while a failure is spreading."""

QUIESCE_SECONDS = 0.3
"""How long to wait for all ranks to stop, before the waits of this one are ended."""

ALL_TO_ALL_RANKS = 64
"""Ranks up to which each fetches the heartbeats of all, in every tick."""

SILENT_SECONDS = 1.0
"""Without a sign of life for so long, a process is stopped, gone or cut off."""

STORE_GRACE = 0.7
"""Seconds that the store may be gone before that counts as a failure: the process that hosts it
may have finished its work, and this one be about to."""

STORE_HOST = "the process that hosts it (the launcher, else the one of rank 0)"


def unanswered_by(place: str, seconds: float) -> str:
    """That the store at a place has not answered for so long."""
    return f"{place} has not answered for {seconds:.1f} s, {STORE_HOST} is stopped or cut off"


ENDED_SECONDS = 0.5
"""Without a heartbeat for so long, a rank's process is probed: a broken connection is told sooner,
but not every channel breaks (NCCL's do not)."""

PROBES_PER_TICK = 8

STOP_SECONDS = 0.5

SLACK_TICKS = 3
"""What a rank has to say reaches another one in the ticks of both, and may just have missed one."""

LONGEST_SLACK = 10.0
"""Seconds; a store that was stopped for a while is no slow network."""


class HeartbeatTask:
    """Publishes this rank's failure and heartbeats, and fetches those of the others.

    An evaluation that is over before the first tick leaves no trace in the store.
    """

    def __init__(
        self,
        store: FailureStore,
        rendezvous: RendezvousStore,
        pointer: InstructionPointer,
        state: FailureState,
        thread: PeriodicThread,
        barrier: MonitoredBarrier | None = None,
    ) -> None:
        """Keep `store` and `state` the same, from `thread`.

        Until its `barrier` is over, look for those who have not come.
        """
        self._barrier = barrier
        self._store, self._rendezvous, self._thread = store, rendezvous, thread
        self._pointer, self._state = pointer, state
        self._ended = self._acknowledged = self._started = False
        self._sent = 0
        self.pause = INTERVAL
        """Seconds between two ticks."""
        self._known_since: float | None = None
        self._fetched = time.monotonic()  # in the beginning there is nothing to fetch
        self.store_error = ""
        """How it was lost."""
        self.store_lost: float | None = None
        """Since when there is no connection to the store."""
        self.answered = time.monotonic()
        """When the store last answered."""
        self.slack = 0.0
        """Seconds by which anything that is expected of the others may be late: the store may be on
        the far end of a slow network, and that is no failure."""
        self.watching = rendezvous.size <= ALL_TO_ALL_RANKS
        """Whether the heartbeats of the others are fetched."""
        self.latest: dict[int, Heartbeat] = {}
        """The latest heartbeats by rank; unless `watching`, of the next rank only."""
        self._changed: dict[int, tuple[int, float]] = {}
        """The number of the latest heartbeat by rank, and when it was first seen."""

    def start(self) -> None:
        """Tick from here on.

        Raises:
            RuntimeError: the system starts no more threads.
        """
        self._thread.start(self)
        self._started = True

    def refresh(self, seconds: float) -> bool:
        """Have a whole tick made now; whether it was, within `seconds` and the slack."""
        if not self._started:  # nobody else will
            self.tick(requested=True)
            return self.store_lost is None
        return self._thread.run_now(seconds + self.slack)

    def stop(self) -> None:
        """End, with a last tick if the store knows of this run; not if it does not answer."""
        idle = self._started and self._thread.stop(self, STOP_SECONDS)
        if idle and (self._sent or self._state.failure or self._state.reported):
            self._ended = True
            self._thread.start(self)
            self._thread.run_now(STOP_SECONDS)
            self._thread.stop(self, 0.0)

    def tick(self, *, requested: bool) -> None:
        """Tell the store how this rank does, and see how the others do."""
        try:
            if self.store_lost is None:
                began = time.monotonic()
                with self._rendezvous.turn:
                    self._exchange(at_once=requested)
                self.answered = time.monotonic()
                late = max(SLACK_TICKS * (self.answered - began), self.slack / 2)
                self.slack = min(late, LONGEST_SLACK)
        except Exception as error:  # each kind of store has errors of its own
            self.store_lost, self.store_error = time.monotonic(), _how_lost(error)
        if self.store_lost is not None and time.monotonic() - self.store_lost > STORE_GRACE:
            self._store_failed()

    def _exchange(self, *, at_once: bool) -> None:
        last = self._ended
        self._publish_heartbeat(evaluating=not last)
        if not last or self._state.failure or self._state.reported:
            self._look_for_the_missing()
            self._look_for_the_ended()
            self._exchange_failures()
            self._fetch_heartbeats(at_once=at_once)

    def _publish_heartbeat(self, *, evaluating: bool) -> None:
        self._pointer.alive()
        self._sent += 1
        status = self._pointer.status()
        self._store.publish_heartbeat(
            Heartbeat(number=self._sent, evaluating=evaluating, status=status)
        )

    def _look_for_the_missing(self) -> None:
        barrier, state = self._barrier, self._state
        if barrier is None or barrier.over or state.failure or state.reported:
            return
        failure = barrier.look()
        if not barrier.over:
            state.reported = failure  # one that is in the store already comes before
        self._publish_heartbeat(evaluating=not self._ended)  # it took some round trips

    def _look_for_the_ended(self) -> None:
        """Report ranks that were evaluating and whose processes have ended.

        Those of other hosts have to be reached before they end, some of them in each tick.
        """
        state, ranks, now = self._state, self._rendezvous, time.monotonic()
        if state.failure or state.reported:
            return
        others = [r for r, h in self.latest.items() if h.evaluating and r != ranks.rank]
        ranks.learn(others)
        silent = [rank for rank in others if now - self._changed[rank][1] > ENDED_SECONDS]
        new = deque(r for r in others if r not in silent and not ranks.is_reached(r))
        new.rotate(PROBES_PER_TICK * self._sent)  # some may never answer
        for rank in list(new)[:PROBES_PER_TICK]:
            ranks.has_ended(rank)
        gone = tuple(rank for rank in silent if ranks.has_ended(rank))
        if gone:  # perhaps after they had left the evaluation, which this rank was late to hear
            self._fetch_heartbeats(at_once=True)
            gone = tuple(r for r in gone if r in self.latest and self.latest[r].evaluating)
        if gone:
            here, at = ranks.names[ranks.rank], self._pointer.status().at
            last = "; ".join(f"{ranks.names[r]} was at {self.latest[r].status.at}" for r in gone)
            who = names([ranks.names[rank] for rank in gone])
            state.reported = Failure(
                kind="lost",
                reporter=ranks.rank,
                name=here,
                at=at,
                reason=f"{who} ended without a word: {last} (noticed by {here} at {at})",
                gone=gone,
            )

    def _exchange_failures(self) -> None:
        state = self._state
        failure = state.failure
        if failure is None:
            reported = state.reported
            failure = self._store.publish(reported) if reported else self._store.read()
        if failure is None:
            return
        if not self._acknowledged:
            self._store.acknowledge()
            self._acknowledged = True
        state.set(failure)
        self._known_since = self._known_since or time.monotonic()
        told = True
        if failure.kind == "disagreement" and self._barrier is not None:
            state.abort()
            told = self._barrier.tell(failure)
        if told and self._store.acknowledged(failure):
            state.acknowledged_by_all()
            self.pause = INTERVAL
        else:
            self.pause = FAST_INTERVAL
            if time.monotonic() - self._known_since > QUIESCE_SECONDS:
                state.abort()

    def _fetch_heartbeats(self, *, at_once: bool) -> None:
        pause = INTERVAL * max(0.5, self._rendezvous.size // ALL_TO_ALL_RANKS)
        if at_once or time.monotonic() - self._fetched > pause:
            ranks = self._rendezvous
            next_rank = (ranks.rank + 1) % ranks.size  # each is watched by one at least
            self.latest = self._store.heartbeats(
                range(ranks.size) if self.watching else [next_rank]
            )
            self._fetched = time.monotonic()
            for rank, heartbeat in self.latest.items():
                if self._changed.get(rank, (-1, 0.0))[0] != heartbeat.number:
                    self._changed[rank] = heartbeat.number, self._fetched

    def _store_failed(self) -> None:
        ranks = self._rendezvous
        name, at = ranks.names[ranks.rank], self._pointer.status().at
        self._state.set(
            Failure(
                kind="lost",
                reporter=ranks.rank,
                name=name,
                at=at,
                reason=f"{name} lost {ranks.place} at {at}: {self.store_error}",
                gone=tuple(set(range(ranks.size)) - {ranks.rank}),
            )
        )
        self._state.acknowledged_by_all()


def _how_lost(error: Exception) -> str:
    damaged = isinstance(error, DamagedValueError)
    return (
        f"{error}, so nothing more is read there"
        if damaged
        else f"{STORE_HOST} has ended ({error})"
    )
