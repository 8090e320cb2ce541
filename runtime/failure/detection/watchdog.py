"""The watchdog: notices when nothing moves any more, from a thread of its own.

A rank may rightly wait for long while others work, so how long it waits says little. What counts
is whether *any* rank got on: once one is stuck, the others soon wait for it, directly or not.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from runtime.failure.detection.heartbeat import SILENT_SECONDS, HeartbeatTask, unanswered_by
from runtime.failure.detection.instruction_pointer import InstructionPointer, RankStatus
from runtime.failure.detection.periodic import PeriodicThread
from runtime.failure.detection.reachability import Reachability
from runtime.failure.forced_exit import ForcedExit
from runtime.failure.report import Failure, names
from runtime.failure.state import FailureState
from runtime.failure.store import Heartbeat
from runtime.transport.peer_process import PROBE_SECONDS
from runtime.transport.rendezvous import RendezvousStore

SLOW_OR_STOPPED = "so its process is stopped, or the network is slow and needs a longer timeout"

PUBLISH_SECONDS = 0.5
TICK_SECONDS = 0.25


@dataclass
class Observation:
    """What one rank's heartbeats say, by this rank's clock."""

    heartbeat: Heartbeat
    alive: float
    """When the last heartbeat came."""
    moved: float
    """When the rank last got on."""

    def update(self, heartbeat: Heartbeat, now: float) -> None:
        """Take a later look."""
        if heartbeat.number != self.heartbeat.number:
            self.alive = now
        if heartbeat.status.progress != self.heartbeat.status.progress:
            self.moved = now
        self.heartbeat = heartbeat


class Watchdog:
    """Ends a run in which no rank has got on for `timeout` seconds."""

    def __init__(
        self,
        timeout: float,
        ranks: RendezvousStore,
        pointer: InstructionPointer,
        heartbeats: HeartbeatTask,
        state: FailureState,
        thread: PeriodicThread,
        forced_exit: ForcedExit | None = None,
    ) -> None:
        """Watch this rank through `pointer` and the others through `heartbeats`, from `thread`."""
        self._thread = thread
        self.pause = min(TICK_SECONDS, timeout / 8)
        """Seconds between two looks."""
        self._timeout, self._ranks = timeout, ranks
        self._pointer, self._heartbeats, self._state = pointer, heartbeats, state
        self._forced_exit = forced_exit
        self._reachability = Reachability(ranks)
        self._observations: dict[int, Observation] = {}
        self.met: float | None = None
        """When all ranks had come; from then on each is expected to leave heartbeats."""

    def start(self) -> None:
        """Look again and again from here on."""
        self._thread.start(self)

    def stop(self) -> None:
        """End."""
        self._thread.stop(self)

    def tick(self, *, requested: bool) -> None:
        """Look."""
        del requested
        if self._state.failure is None:
            self._look(time.monotonic())
            return
        if time.monotonic() - self._heartbeats.answered > SILENT_SECONDS:
            self._state.abort()  # the heartbeat thread will not
        if self._forced_exit is not None:
            self._forced_exit.consider(self._state.failure, time.monotonic())

    def _look(self, now: float) -> None:
        here = self._ranks.rank
        own = Heartbeat(number=0, evaluating=True, status=self._pointer.status())
        self._see(here, own, now)
        self._observations[here].alive = now
        if not self._pointer.patient and now - self._observations[here].moved < self._timeout / 4:
            return  # who may take its time does not wait for others before it looks at them
        self._heartbeats.watching = True
        for rank, heartbeat in self._heartbeats.latest.items():
            if rank != here:
                self._see(rank, heartbeat, now)
        if self._nobody_gets_on(now, self._timeout):
            self._report(now)
        elif self._nobody_gets_on(now, self._timeout - min(PROBE_SECONDS, self._timeout / 2)):
            self._answers(self._silent(now), now - self._heartbeats.answered)  # for the report

    def _nobody_gets_on(self, now: float, seconds: float) -> bool:
        """Whether no rank has got on for so long, or one has been silent."""
        if all(now - seen.moved > seconds for seen in self._observations.values()):
            return True
        late = seconds + self._heartbeats.slack
        seen = [s.alive for s in self._observations.values() if s.heartbeat.evaluating]
        if self.met is not None and len(seen) < self._ranks.size:
            seen.append(self.met)
        return now - min(seen) > late

    @property
    def _alive(self) -> float:
        """Seconds of silence that mean nothing."""
        return SILENT_SECONDS + self._heartbeats.slack

    def _silent(self, now: float) -> frozenset[int]:
        heard = {rank: seen.alive for rank, seen in self._observations.items()}
        every = range(self._ranks.size)
        return frozenset(rank for rank in every if now - heard.get(rank, 0.0) > self._alive)

    def _answers(self, silent: frozenset[int], unanswered: float) -> bool:
        """Whether the host of the store, if that is silent, or else of silent ranks still does."""
        cut_off = unanswered > self._alive
        return self._reachability.answers(None if cut_off else silent)

    def _see(self, rank: int, heartbeat: Heartbeat, now: float) -> None:
        if rank in self._observations:
            self._observations[rank].update(heartbeat, now)
        else:
            self._observations[rank] = Observation(heartbeat, now, now - heartbeat.status.seconds)

    def _report(self, now: float) -> None:
        heartbeats = {rank: seen.heartbeat for rank, seen in self._observations.items()}
        if self.met is not None:  # others are from runs before
            heartbeats = {
                rank: heartbeat for rank, heartbeat in heartbeats.items() if heartbeat.evaluating
            }
        silence = {rank: now - seen.alive for rank, seen in self._observations.items()}
        unanswered, silent = now - self._heartbeats.answered, self._silent(now)
        said = (heartbeats, silence, unanswered, self._alive, self._ranks.place)
        met, answers = self.met is not None, self._answers(silent, unanswered)
        reason = describe(self._ranks.names, self._timeout, *said, met=met, answers=answers)
        failure = Failure(
            kind="stalled",
            reporter=self._ranks.rank,
            name=self._ranks.names[self._ranks.rank],
            at=self._pointer.status().at,
            reason=reason,
            gone=tuple(sorted(silent)),
        )
        self._state.reported = failure
        told = self._heartbeats.refresh(PUBLISH_SECONDS)
        self._state.set(failure)  # unless the store has another one
        if not told:
            self._state.acknowledged_by_all()  # as many as can be


def describe(
    ranks: tuple[str, ...],
    timeout: float,
    heartbeats: Mapping[int, Heartbeat],
    silence: Mapping[int, float],
    unanswered: float = 0.0,
    alive: float = SILENT_SECONDS,
    place: str = "the store",
    *,
    met: bool = False,
    answers: bool = False,
) -> str:
    """Who waits for whom, and who keeps them waiting.

    Args:
        ranks: What each rank is called.
        timeout: Seconds without progress.
        heartbeats: The latest of the ranks that have left one.
        silence: Seconds since then.
        unanswered: Seconds since the store answered; without it no heartbeat comes.
        alive: Seconds of silence that mean nothing.
        place: Where the store is.
        met: Whether all ranks have begun.
        answers: Whether the host of who is silent takes connections.
    """
    cut_off = unanswered > alive
    silent, outside, busy, lines = list[str](), list[str](), list[str](), list[str]()
    for rank, name in enumerate(ranks):
        if rank not in heartbeats:
            if not cut_off:
                (silent if met else outside).append(name)
            unheard = "nothing was heard of it"
            what = unheard if cut_off or met else "has not begun this evaluation"
            lines.append(f"  {name}: {what}")
        elif silence[rank] > alive:
            if not cut_off:
                silent.append(name)
            last = _line(heartbeats[rank].status, 0.0)
            lines.append(f"  {name}: no sign of life for {silence[rank]:.1f} s; last {last}")
        elif not heartbeats[rank].evaluating:
            outside.append(name)
            lines.append(f"  {name}: is not in an evaluation")
        else:
            status = heartbeats[rank].status
            if not status.waits_for:
                busy.append(name)
            lines.append(f"  {name}: {_line(status, silence[rank])}")
    causes = [
        f"{names(ranks)} {verdict}"
        for ranks, verdict in (
            (silent, "gave no sign of life"),
            (outside, "did not take part"),
            (busy, "did not finish what it was at" if len(busy) == 1 else "did not finish"),
        )
        if ranks
    ]
    if cut_off:
        causes = [unanswered_by(place, unanswered)]
    if answers:
        causes.append(f"connections to it are taken, {SLOW_OR_STOPPED}")
    cause = "; ".join(causes) or "the stages wait for each other"
    return "\n".join([f"no stage got on for {timeout:g} s (the timeout): {cause}", *lines])


def _line(status: RankStatus, since: float) -> str:
    waits = f", waits for {status.waits_for}" if status.waits_for else ""
    return f"at {status.at}, for {status.seconds + since:.1f} s{waits}"
