"""The courier: the thread that carries word between this rank and the board.

Nobody else touches the store during a run, because a store whose host is stopped answers nobody:
then this thread hangs, and the others notice that it does.
"""

import threading
import time

from runtime.failure.board import Beat, Board, MeetingPlace
from runtime.failure.incident import Incident
from runtime.failure.position import Pointer
from runtime.failure.report import Failure

INTERVAL = 0.1
"""Seconds between two rounds."""

HASTE = 0.01
"""Seconds between two rounds while a failure is spreading."""

QUIET_SECONDS = 0.3
"""How long to wait for all ranks to stop, before the waits of this one are ended."""

CROWD = 64
"""Ranks up to which everybody fetches everybody's signs of life, in every round."""

STORE_GRACE = 0.7
"""Seconds that the store may be gone before that counts as a failure: the process that hosts it
may have finished its work, and this one be about to."""

STORE_GONE = "the process that hosts it (the launcher, else the one of rank 0) has ended"

STOP_SECONDS = 0.5


class Courier(threading.Thread):
    """Publishes this rank's failure and signs of life, and fetches those of the others."""

    def __init__(
        self, board: Board, place: MeetingPlace, pointer: Pointer, incident: Incident
    ) -> None:
        """Carry between `board` and `incident`."""
        super().__init__(name="schedcc courier", daemon=True)
        self._board, self._place = board, place
        self._pointer, self._incident = pointer, incident
        self._awake = threading.Condition()
        self._requested = self._finished = 0
        self._ended = self._acknowledged = False
        self._beats_sent = 0
        self._interval = INTERVAL
        self._settled: float | None = None
        self._fetched = time.monotonic()  # in the beginning there is nothing to hear
        self._store_error = ""
        self.store_lost: float | None = None
        """Since when there is no connection to the store."""
        self.answered = time.monotonic()
        """When the store last answered."""
        self.watching = place.size <= CROWD
        """Whether the signs of life of the others are fetched."""
        self.beats: dict[int, Beat] = {}
        """The latest signs of life, while `watching`."""

    def run(self) -> None:
        """Make rounds until the end."""
        while True:
            with self._awake:
                request, last = self._requested, self._ended
            self._round(asked=request > self._finished, last=last)
            with self._awake:
                self._finished = request
                self._awake.notify_all()
                if last:
                    return
                self._awake.wait_for(
                    lambda done=request: self._ended or self._requested > done,  # type: ignore[misc]
                    self._interval,
                )

    def refresh(self, seconds: float) -> bool:
        """Have a whole round made now; whether it was, within `seconds`."""
        with self._awake:
            self._requested += 1
            request = self._requested
            self._awake.notify_all()
            return self._awake.wait_for(lambda: self._finished >= request, seconds)

    def stop(self) -> None:
        """Make a last round and end; if the store does not answer, end when it does."""
        with self._awake:
            self._ended = True
            self._awake.notify_all()
        self.join(STOP_SECONDS)

    def _round(self, *, asked: bool, last: bool) -> None:
        try:
            if self.store_lost is None:
                self._beat(evaluating=not last)
                if not last or self._incident.failure or self._incident.reported:
                    self._exchange()
                    self._fetch(at_once=asked)
                self.answered = time.monotonic()
        except Exception as error:  # each kind of store has errors of its own
            self.store_lost, self._store_error = time.monotonic(), str(error)
        if self.store_lost is not None and time.monotonic() - self.store_lost > STORE_GRACE:
            self._store_failed()

    def _beat(self, *, evaluating: bool) -> None:
        self._pointer.alive()
        self._beats_sent += 1
        position = self._pointer.position()
        self._board.beat(Beat(number=self._beats_sent, evaluating=evaluating, position=position))

    def _exchange(self) -> None:
        incident = self._incident
        failure = incident.failure
        if failure is None:
            reported = incident.reported
            failure = self._board.publish(reported) if reported else self._board.read()
        if failure is None:
            return
        if not self._acknowledged:
            self._board.acknowledge()
            self._acknowledged = True
        incident.settle(failure)
        self._settled = self._settled or time.monotonic()
        if self._board.acknowledged(failure):
            incident.heard_by_all()
            self._interval = INTERVAL
        else:
            self._interval = HASTE
            if time.monotonic() - self._settled > QUIET_SECONDS:
                incident.give_up()

    def _fetch(self, *, at_once: bool) -> None:
        pause = INTERVAL * max(0.5, self._place.size // CROWD)
        if self.watching and (at_once or time.monotonic() - self._fetched > pause):
            self.beats = self._board.beats()
            self._fetched = time.monotonic()

    def _store_failed(self) -> None:
        place = self._place
        name, at = place.names[place.rank], self._pointer.position().at
        self._incident.settle(
            Failure(
                kind="lost",
                reporter=place.rank,
                stage=name,
                at=at,
                reason=f"{name} lost the store at {at}: {STORE_GONE} ({self._store_error})",
                gone=tuple(set(range(place.size)) - {place.rank}),
            )
        )
        self._incident.heard_by_all()
