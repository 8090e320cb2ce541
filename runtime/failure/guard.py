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

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

from runtime.device import Clock
from runtime.failure.errors import AgreedError, RemoteError
from runtime.failure.monitored_barrier import Rendezvous
from runtime.failure.periodic import Patrol
from runtime.failure.position import EVERYONE, Pointer
from runtime.failure.report import Failure
from runtime.failure.session import Session
from runtime.failure.store import MeetingPlace
from runtime.planning.handshake import AgreementError
from runtime.transport.protocol import ConnectionLostError, Transport

TIMEOUT = 300.0
"""Seconds after which a run in which nothing moves is ended, unless the caller says otherwise."""

CLOSE_SECONDS = 1.0
"""How long the end of a thread is waited for; who asks a store that is stopped may not come."""


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


@dataclass
class _State:
    """What the guards of one transport share, under whatever names."""

    active: Run | None = None
    lost: Failure | None = None


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
        self._state = _State()
        self._name = ""

    def named(self, name: str) -> "Guard":
        """This guard, for the work of the evaluator that all ranks call `name`."""
        guard = copy.copy(self)
        guard._name = name
        return guard

    @contextmanager
    def run(self, what: str = "the evaluation") -> Iterator[Run]:
        """Do something together with the other ranks; all of them have to enter and to leave.

        A run inside a run is a part of it.

        Args:
            what: Is done; all ranks have to do the same.

        Raises:
            AgreementError: they do not, or with several evaluators do it in another order.
            RemoteError: it failed on another rank, a process was lost, or nothing moved.
        """
        state = self._state
        if state.active is not None:
            yield state.active
        elif (place := self._transport.meeting_place) is None:
            yield Run(Pointer(lambda: None, Clock(self._transport.device)), epoch=0)
        else:
            task = f"{what} of {self._name}" if self._name else what
            with self._together(place, task) as state.active:
                try:
                    yield state.active
                finally:
                    state.active = None

    def close(self) -> None:
        """End the threads; they would soon end by themselves."""
        for patrol in (self._rounds, self._watch):
            patrol.close(CLOSE_SECONDS)

    @contextmanager
    def _together(self, place: MeetingPlace, task: str) -> Iterator[Run]:
        if self._state.lost is not None:
            error = self._state.lost.exception()
            error.add_note("in a run before; a lost process does not come back, start all again")
            raise error
        session = self._met(place, task)
        try:
            yield Run(session.pointer, session.epoch)
            session.part()
        except BaseException as error:
            agreed = isinstance(error, AgreedError) and error.agreed
            if agreed and self._transport.replicas == 1:
                raise  # the other replicas have to be told
            self._raise(error, session.settle(error), place, session)
        finally:
            session.stop()

    def _met(self, place: MeetingPlace, task: str) -> Session:
        """The session in which all ranks have met."""
        while True:
            rendezvous = Rendezvous(place, self._transport.epoch, self._name, task)
            session = Session(
                self._transport, place, rendezvous, self._timeout, self._rounds, self._watch
            )
            try:
                session.meet()
            except BaseException as error:
                try:
                    if isinstance(error, AgreedError):
                        raise  # on all ranks at once
                    failure = session.settle(error)
                    if failure.kind == "disagreement" and place.rank in failure.gone:
                        continue  # the others gave that attempt up while this rank was elsewhere
                    self._raise(error, failure, place, session)
                finally:
                    session.stop()
            return session

    def _raise(
        self, error: BaseException, failure: Failure, place: MeetingPlace, session: Session
    ) -> NoReturn:
        """Raise what this rank is to raise, after `error` made it leave the run."""
        if failure.kind == "lost" and failure.gone:
            self._state.lost = failure
        if failure.kind == "error" and failure == session.incident.reported:
            note = f"at {place.names[place.rank]}, {failure.at}"
            if note not in getattr(error, "__notes__", []):
                error.add_note(note)
            raise error
        # All stages raise an agreed error; otherwise the user or the system ends this process.
        if isinstance(error, AgreedError) or not isinstance(error, Exception):
            raise error
        if failure.kind == "disagreement":
            raise AgreementError(failure.reason) from None
        if isinstance(error, (ConnectionLostError, RemoteError)):
            raise failure.exception() from None
        raise failure.exception() from error
