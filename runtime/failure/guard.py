"""The guard: no run of a pipeline hangs, and a failure of one rank is the failure of all.

    main thread            courier (thread)                watchdog (thread)
    ------------------     ---------------------------     --------------------------
    runs the stage;        leaves signs of life, looks     notices that nobody got on
    before instructions    for a failure on the board;     for the timeout
    looks at the incident  when all ranks have read it,
                           ends the main thread's wait

The first failure on the board wins: its origin raises the exception itself, every other rank a
`RemoteError` that carries it. Before anybody raises, all wait until everybody knows (at most a
second), because the process that hosts the store may end on its error. The channels of a failed
run are thrown away, with whatever is under way in them, and the next run begins with new ones.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from runtime.device import Clock
from runtime.failure.board import Board, MeetingPlace
from runtime.failure.courier import Courier
from runtime.failure.errors import AgreedError, RemoteError
from runtime.failure.incident import Incident
from runtime.failure.last_resort import LastResort
from runtime.failure.patrol import Patrol
from runtime.failure.position import EVERYONE, Pointer
from runtime.failure.report import Failure
from runtime.failure.roll_call import lost
from runtime.failure.watchdog import Watchdog
from runtime.transport.protocol import ConnectionLostError, Transport

TIMEOUT = 300.0
"""Seconds after which a run in which nothing moves is ended, unless the caller says otherwise."""

LINGER_SECONDS = 1.0
ANSWER_SECONDS = 0.5


class Run:
    """A guarded stretch of work: what its steps tell the guard. Also a listener."""

    def __init__(self, pointer: Pointer, epoch: int) -> None:
        """Tell `pointer`."""
        self._pointer = pointer
        self.epoch = epoch
        """Of the channels; what was agreed on over those of another epoch may be half known."""
        self.started, self.finished = pointer.started, pointer.finished

    @property
    def before(self) -> int:
        """Micro-batches of the data set that came before the first of the current plan."""
        return self._pointer.before

    @before.setter
    def before(self, micro_batches: int) -> None:
        self._pointer.before = micro_batches

    def phase(self, at: str, *, waits_for: str = EVERYONE, patient: bool = False) -> None:
        """Say what comes next, if no instruction does; see `Pointer.phase`."""
        self._pointer.phase(at, waits_for=waits_for, patient=patient)

    def drain(self) -> None:
        """Let the device finish, watchfully."""
        self._pointer.drain()


class Guard:
    """Guards the work that a process does on one transport."""

    def __init__(self, transport: Transport, *, timeout: float = TIMEOUT) -> None:
        """Guard what is done on `transport`.

        Args:
            transport: Connection to the other ranks.
            timeout: Seconds after which a run in which no rank gets on is ended.

        Raises:
            ValueError: `timeout` is no positive number.
        """
        if not timeout > 0:
            raise ValueError(f"timeout is {timeout!r} seconds, needed more than 0")
        self._transport, self._timeout = transport, timeout
        self._rounds, self._watch = Patrol("schedcc courier"), Patrol("schedcc watchdog")
        self._active: Run | None = None
        self._lost: Failure | None = None

    @contextmanager
    def run(self) -> Iterator[Run]:
        """Do something together with the other ranks; all of them have to enter and to leave.

        A run inside a run is a part of it.

        Raises:
            RemoteError: it failed on another rank, a process was lost, or nothing moved.
        """
        place = self._transport.meeting_place
        if self._active is not None:
            yield self._active
        elif place is None:
            yield Run(Pointer(lambda: None, Clock(self._transport.device)), epoch=0)
        else:
            with self._together(place) as self._active:
                try:
                    yield self._active
                finally:
                    self._active = None

    @contextmanager
    def _together(self, place: MeetingPlace) -> Iterator[Run]:
        if self._lost is not None:
            error = self._lost.exception()
            error.add_note("in a run before; a lost process does not come back, start all again")
            raise error
        transport, clock = self._transport, Clock(self._transport.device)
        epoch = transport.epoch
        incident = Incident(transport.abandon)
        pointer = Pointer(incident.check, clock)
        courier = Courier(Board(place, epoch), place, pointer, incident, self._rounds)
        last_resort = LastResort() if clock.on_gpu else None
        watchdog = Watchdog(
            self._timeout, place, pointer, courier, incident, self._watch, last_resort
        )
        courier.start()
        watchdog.start()
        try:
            if not transport.usable:
                _join(place, courier, incident)
                transport.open((place.size + 1) * self._timeout)
            yield Run(pointer, epoch)
            pointer.drain()
            pointer.phase("the end of the evaluation", waits_for=EVERYONE)
            transport.gather_objects(None)
            transport.gather_from_replicas(None)
        except BaseException as error:
            if isinstance(error, AgreedError) and error.agreed and transport.replicas == 1:
                raise  # the other replicas have to be told
            watchdog.stop()
            failure = _settle(error, place, pointer, courier, incident)
            if failure.kind == "lost" and failure.gone:
                self._lost = failure
            _raise(error, failure, place, incident)
        finally:
            watchdog.stop()
            courier.stop()


def _join(place: MeetingPlace, courier: Courier, incident: Incident) -> None:
    """Wait until every rank has come: none should be caught in the opening of channels."""
    watching, courier.watching = courier.watching, True
    pause = 0.001
    while len(courier.beats) < place.size:
        courier.refresh(ANSWER_SECONDS)
        incident.check()
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    courier.watching = watching


def _settle(
    error: BaseException,
    place: MeetingPlace,
    pointer: Pointer,
    courier: Courier,
    incident: Incident,
) -> Failure:
    """Find out, or tell the others, why the run failed; return when everybody knows."""
    at, name = pointer.position().at, place.names[place.rank]
    if incident.failure is None:
        if isinstance(error, ConnectionLostError):
            mine = lost(error, place, at, courier, incident)
        else:
            mine = Failure.of(error, reporter=place.rank, stage=name, at=at)
        if mine is not None:
            incident.reported = mine
            told = courier.refresh(ANSWER_SECONDS)
            incident.settle(mine)  # unless the board has another one
            if not told:
                incident.heard_by_all()  # as many as can be
    incident.linger(LINGER_SECONDS)
    incident.give_up()
    assert incident.failure is not None
    return incident.failure


def _raise(
    error: BaseException, failure: Failure, place: MeetingPlace, incident: Incident
) -> NoReturn:
    """Raise what this rank is to raise, after `error` made it leave the run."""
    if failure.kind == "error" and failure == incident.reported:
        note = f"at {place.names[place.rank]}, {failure.at}"
        if note not in getattr(error, "__notes__", []):
            error.add_note(note)
        raise error
    # All stages raise an agreed error; otherwise the user or the system ends this process.
    if isinstance(error, AgreedError) or not isinstance(error, Exception):
        raise error
    if isinstance(error, (ConnectionLostError, RemoteError)):
        raise failure.exception() from None
    raise failure.exception() from error
