"""The guard: no run of a pipeline hangs, and a failure of one rank is the failure of all.

    main thread            heartbeat thread                watchdog thread
    ------------------     ---------------------------     --------------------------
    runs the rank;         publishes heartbeats, looks     notices that no rank got
    before instructions    for a failure in the store;     on for the timeout
    looks at the           when all ranks have read it,
    failure state          ends the main thread's wait

The first failure in the store wins: its origin raises the exception itself, every other rank a
`RemoteError` that carries it. Before any rank raises, all wait until all know (at most a second),
because the process that hosts the store may end on its error. The channels of a failed
run are thrown away, with whatever is under way in them, and the next run begins with new ones.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NoReturn

from runtime.device import Clock
from runtime.failure.detection.instruction_pointer import ALL_STAGES, InstructionPointer
from runtime.failure.detection.monitored_barrier import MonitoredBarrier
from runtime.failure.detection.periodic import PeriodicThread
from runtime.failure.error_text import note
from runtime.failure.errors import AgreedError, AgreementError, RemoteError, error_of
from runtime.failure.report import Failure
from runtime.failure.session import Session
from runtime.transport.protocol import ConnectionLostError, Transport
from runtime.transport.rendezvous import RendezvousStore

TIMEOUT = 300.0
"""Seconds after which a run in which nothing moves is ended, unless the caller says otherwise."""

CLOSE_SECONDS = 1.0
"""How long the end of a thread is waited for; who asks a store that is stopped may not come."""


def require_timeout(timeout: object) -> None:
    """Make sure that this is a time.

    Raises:
        ValueError: it is no positive number.
    """
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not is_number or not timeout > 0:  # type: ignore[operator]
        shown = f"{timeout:g}" if is_number else repr(timeout)
        raise ValueError(f"timeout is {shown} seconds, needed more than 0")


class GuardedRun:
    """A guarded stretch of work: what its steps tell the guard. Also a listener."""

    def __init__(self, pointer: InstructionPointer, generation: int) -> None:
        """Tell `pointer`."""
        self._pointer = pointer
        self.generation = generation
        """Of the channels; what was agreed on over those of another one may be half known."""
        self.started, self.finished = pointer.started, pointer.finished

    @property
    def before(self) -> int:
        """Micro-batches of the data set that came before the first of the current plan."""
        return self._pointer.before

    @before.setter
    def before(self, micro_batches: int) -> None:
        self._pointer.before = micro_batches

    def check(self) -> None:
        """Raise if the run has failed elsewhere."""
        self._pointer.check()

    def phase(self, at: str, *, waits_for: str = ALL_STAGES, patient: bool = False) -> None:
        """Say what comes next, if no instruction does; see `InstructionPointer.phase`."""
        self._pointer.phase(at, waits_for=waits_for, patient=patient)

    def drain(self) -> None:
        """Let the device finish, watchfully."""
        self._pointer.drain()

    def settle(self) -> None:
        """Wait for all that the device was given, watchfully."""
        self._pointer.settle()


@dataclass
class _Shared:
    """What the guards of one transport share, under whatever names."""

    active: GuardedRun | None = None
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
        require_timeout(timeout)
        self._transport, self._timeout = transport, timeout
        self._heartbeat_thread, self._watchdog_thread = (
            PeriodicThread("schedcc heartbeats"),
            PeriodicThread("schedcc watchdog"),
        )
        self._shared = _Shared()
        self._name, self._titles = "", tuple[str, ...]()

    def named(self, name: str, titles: Sequence[str] = ()) -> "Guard":
        """This guard, for the work of the evaluator that all ranks call `name`.

        Args:
            name: Empty: of none.
            titles: What messages call each rank of a pipeline; default: `"rank 0"` and so on.
        """
        guard = copy.copy(self)
        guard._name, guard._titles = name, tuple(titles)
        return guard

    @contextmanager
    def run(self, what: str = "the evaluation") -> Iterator[GuardedRun]:
        """Do something together with the other ranks; all of them have to enter and to leave.

        A run inside a run is a part of it.

        Args:
            what: Is done; all ranks have to do the same.

        Raises:
            AgreementError: they do not, or with several evaluators do it in another order.
            RemoteError: it failed on another rank, a process was lost, or nothing moved.
        """
        shared = self._shared
        if shared.active is not None:
            yield shared.active
        elif (ranks := self._ranks()) is None:
            yield GuardedRun(
                InstructionPointer(lambda: None, Clock(self._transport.device)), generation=0
            )
        else:
            task = f"{what} of {self._name}" if self._name else what
            with self._together(ranks, task) as shared.active:
                try:
                    yield shared.active
                finally:
                    shared.active = None

    def close(self) -> None:
        """End the threads; they would soon end by themselves."""
        for thread in (self._heartbeat_thread, self._watchdog_thread):
            thread.close(CLOSE_SECONDS)

    def _ranks(self) -> RendezvousStore | None:
        """All ranks, by the names that messages give them."""
        ranks, replicas = self._transport.rendezvous, self._transport.replicas
        if ranks is None or not self._titles:
            return ranks
        names = tuple(
            title + (f" of replica {replica}" if replicas > 1 else "")
            for replica in range(replicas)
            for title in self._titles
        )
        return replace(ranks, names=names)

    @contextmanager
    def _together(self, ranks: RendezvousStore, task: str) -> Iterator[GuardedRun]:
        if self._shared.lost is not None:
            error = error_of(self._shared.lost)
            error.add_note("in a run before; a lost process does not come back, start all again")
            raise error
        session = self._met(ranks, task)
        try:
            yield GuardedRun(session.pointer, session.generation)
            session.part()
        except BaseException as error:
            agreed = isinstance(error, AgreedError) and error.agreed
            if agreed and self._transport.replicas == 1:
                raise  # the other replicas have to be told
            self._raise(error, session.fail(error), ranks)
        finally:
            session.stop()

    def _met(self, ranks: RendezvousStore, task: str) -> Session:
        """The session in which all ranks have met."""
        while True:
            barrier = MonitoredBarrier(ranks, self._transport.generation, self._name, task)
            session = Session(
                self._transport,
                ranks,
                barrier,
                self._timeout,
                self._heartbeat_thread,
                self._watchdog_thread,
            )
            try:
                session.meet()
            except BaseException as error:
                try:
                    if isinstance(error, AgreedError):
                        raise  # on all ranks at once
                    failure = session.fail(error)
                    if failure.kind == "disagreement" and ranks.rank in failure.gone:
                        continue  # the others abandoned that attempt while this rank was elsewhere
                    self._raise(error, failure, ranks)
                finally:
                    session.stop()
            return session

    def _raise(self, error: BaseException, failure: Failure, ranks: RendezvousStore) -> NoReturn:
        """Raise what this rank is to raise, after `error` made it leave the run."""
        if failure.kind == "lost" and failure.gone:
            self._shared.lost = failure
        if failure.kind == "error" and failure.reporter == ranks.rank:
            note(error, f"at {ranks.names[ranks.rank]}, {failure.at}")
            raise error
        # All stages raise an agreed error; otherwise the user or the system ends this process.
        if isinstance(error, AgreedError) or not isinstance(error, Exception):
            raise error
        if failure.kind == "disagreement":
            raise AgreementError(failure.reason) from None
        if isinstance(error, (ConnectionLostError, RemoteError)):
            raise error_of(failure) from None
        raise error_of(failure) from error
