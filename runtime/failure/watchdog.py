"""The watchdog: notices when nothing moves any more, from a thread of its own.

A stage may rightly wait for long while others work, so its own patience says little. What counts is
whether *any* rank got on: once one of them is stuck, the others soon wait for it, directly or not.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from runtime.failure.forced_exit import LastResort
from runtime.failure.heartbeat import Courier
from runtime.failure.periodic import Patrol
from runtime.failure.position import Pointer, Position
from runtime.failure.report import Failure, names
from runtime.failure.state import Incident
from runtime.failure.store import Beat, MeetingPlace

SILENT_SECONDS = 1.0
"""Without a sign of life for so long, a process is stopped, gone or cut off."""

PUBLISH_SECONDS = 0.5
TICK_SECONDS = 0.25


@dataclass
class Sighting:
    """What one rank's signs of life say, by this rank's clock."""

    beat: Beat
    heard: float
    moved: float

    def update(self, beat: Beat, now: float) -> None:
        """Take a later look."""
        if beat.number != self.beat.number:
            self.heard = now
        if beat.position.progress != self.beat.position.progress:
            self.moved = now
        self.beat = beat


class Watchdog:
    """Ends a run in which no rank has got on for `timeout` seconds."""

    def __init__(
        self,
        timeout: float,
        place: MeetingPlace,
        pointer: Pointer,
        courier: Courier,
        incident: Incident,
        patrol: Patrol,
        last_resort: LastResort | None = None,
    ) -> None:
        """Watch this rank through `pointer`, the others through `courier`, on duty of `patrol`."""
        self._patrol = patrol
        self.pause = min(TICK_SECONDS, timeout / 8)
        """Seconds between two looks."""
        self._timeout, self._place = timeout, place
        self._pointer, self._courier, self._incident = pointer, courier, incident
        self._last_resort = last_resort
        self._sightings: dict[int, Sighting] = {}

    def start(self) -> None:
        """Look again and again from here on."""
        self._patrol.begin(self)

    def stop(self) -> None:
        """End."""
        self._patrol.end(self)

    def visit(self, *, asked: bool) -> None:
        """Look."""
        del asked
        if self._incident.failure is None:
            self._look(time.monotonic())
            return
        if time.monotonic() - self._courier.answered > SILENT_SECONDS:
            self._incident.give_up()  # the courier will not
        if self._last_resort is not None:
            self._last_resort.consider(self._incident.failure, time.monotonic())

    def _look(self, now: float) -> None:
        here = self._place.rank
        own = Beat(number=0, evaluating=True, position=self._pointer.position())
        self._see(here, own, now)
        self._sightings[here].heard = now
        if now - self._sightings[here].moved < self._timeout / 4:
            return
        self._courier.watching = True
        for rank, beat in self._courier.beats.items():
            if rank != here:
                self._see(rank, beat, now)
        sightings = self._sightings.values()
        stuck = all(now - seen.moved > self._timeout for seen in sightings)
        gone = any(seen.beat.evaluating and now - seen.heard > self._timeout for seen in sightings)
        if stuck or gone:
            self._report(now)

    def _see(self, rank: int, beat: Beat, now: float) -> None:
        if rank in self._sightings:
            self._sightings[rank].update(beat, now)
        else:
            self._sightings[rank] = Sighting(beat, now, now - beat.position.seconds)

    def _report(self, now: float) -> None:
        positions = {rank: seen.beat for rank, seen in self._sightings.items()}
        silence = {rank: now - seen.heard for rank, seen in self._sightings.items()}
        silent = {r for r in range(self._place.size) if silence.get(r, now) > SILENT_SECONDS}
        unanswered = now - self._courier.answered
        reason = describe(self._place.names, self._timeout, positions, silence, unanswered)
        failure = Failure(
            kind="stalled",
            reporter=self._place.rank,
            stage=self._place.names[self._place.rank],
            at=self._pointer.position().at,
            reason=reason,
            gone=tuple(silent),
        )
        self._incident.reported = failure
        told = self._courier.refresh(PUBLISH_SECONDS)
        self._incident.settle(failure)  # unless the board has another one
        if not told:
            self._incident.heard_by_all()  # as many as can be


def describe(
    ranks: tuple[str, ...],
    timeout: float,
    beats: Mapping[int, Beat],
    silence: Mapping[int, float],
    unanswered: float = 0.0,
) -> str:
    """Who waits for whom, and who keeps them waiting.

    Args:
        ranks: What each rank is called.
        timeout: Seconds without progress.
        beats: The latest sign of life of the ranks that have left one.
        silence: Seconds since then.
        unanswered: Seconds since the store answered; without it nobody is heard of.
    """
    deaf = unanswered > SILENT_SECONDS
    silent, outside, busy, lines = [], [], [], []
    for rank, name in enumerate(ranks):
        if rank not in beats:
            outside.append(name)
            lines.append(f"  {name}: has not begun this evaluation")
        elif silence[rank] > SILENT_SECONDS:
            if not deaf:
                silent.append(name)
            last = _line(beats[rank].position, 0.0)
            lines.append(f"  {name}: no sign of life for {silence[rank]:.1f} s; last {last}")
        elif not beats[rank].evaluating:
            outside.append(name)
            lines.append(f"  {name}: is not in an evaluation")
        else:
            position = beats[rank].position
            if not position.waits_for:
                busy.append(name)
            lines.append(f"  {name}: {_line(position, silence[rank])}")
    causes = [
        f"{names(stages)} {verdict}"
        for stages, verdict in (
            (silent, "gave no sign of life"),
            (outside, "did not take part"),
            (busy, "did not finish what it was at" if len(busy) == 1 else "did not finish"),
        )
        if stages
    ]
    if deaf:
        causes = [
            f"the store has not answered for {unanswered:.1f} s, the process that hosts it (the "
            "launcher, else the one of rank 0) is stopped or cut off"
        ]
    cause = "; ".join(causes) or "the stages wait for each other"
    return "\n".join([f"no stage got on for {timeout:g} s (the timeout): {cause}", *lines])


def _line(position: Position, since: float) -> str:
    waits = f", waits for {position.waits_for}" if position.waits_for else ""
    return f"at {position.at}, for {position.seconds + since:.1f} s{waits}"
