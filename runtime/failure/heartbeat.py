"""The courier: carries word between this rank and the board, from a thread of its own.

Nobody else touches the store during a run, because a store whose host is stopped answers nobody:
then this thread hangs, and the others notice that it does.
"""

import time

from runtime.failure.monitored_barrier import Rendezvous
from runtime.failure.periodic import Patrol
from runtime.failure.position import Pointer
from runtime.failure.report import Failure
from runtime.failure.state import Incident
from runtime.failure.store import Beat, Board, MeetingPlace

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


class Courier:
    """Publishes this rank's failure and signs of life, and fetches those of the others.

    An evaluation that is over before the first round leaves no trace in the store.
    """

    def __init__(
        self,
        board: Board,
        place: MeetingPlace,
        pointer: Pointer,
        incident: Incident,
        patrol: Patrol,
        rendezvous: Rendezvous | None = None,
    ) -> None:
        """Carry between `board` and `incident`, while on duty of `patrol`.

        Until its `rendezvous` is over, look for those who have not come.
        """
        self._rendezvous = rendezvous
        self._board, self._place, self._patrol = board, place, patrol
        self._pointer, self._incident = pointer, incident
        self._ended = self._acknowledged = False
        self._beats_sent = 0
        self.pause = INTERVAL
        """Seconds between two rounds."""
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

    def start(self) -> None:
        """Make rounds from here on."""
        self._patrol.begin(self)

    def refresh(self, seconds: float) -> bool:
        """Have a whole round made now; whether it was, within `seconds`."""
        return self._patrol.call(seconds)

    def stop(self) -> None:
        """End, with a last round if the board has heard of this run; not if it does not answer."""
        quiet = self._patrol.end(self, STOP_SECONDS)
        if quiet and (self._beats_sent or self._incident.failure or self._incident.reported):
            self._ended = True
            self._patrol.begin(self)
            self._patrol.call(STOP_SECONDS)
            self._patrol.end(self, 0.0)

    def visit(self, *, asked: bool) -> None:
        """Make a round."""
        last = self._ended
        try:
            if self.store_lost is None:
                self._beat(evaluating=not last)
                if not last or self._incident.failure or self._incident.reported:
                    self._look_for_the_missing()
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

    def _look_for_the_missing(self) -> None:
        rendezvous, incident = self._rendezvous, self._incident
        if rendezvous is None or rendezvous.over or incident.failure or incident.reported:
            return
        failure = rendezvous.look()
        if not rendezvous.over:
            incident.reported = failure  # one that is on the board already comes before

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
        told = True
        if failure.kind == "disagreement" and self._rendezvous is not None:
            incident.give_up()
            told = self._rendezvous.tell(failure)
        if told and self._board.acknowledged(failure):
            incident.heard_by_all()
            self.pause = INTERVAL
        else:
            self.pause = HASTE
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
