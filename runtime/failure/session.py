"""A session: one attempt of a run, with all that watches it on this rank.

A rank that was elsewhere while the others abandoned an attempt goes on with the next: see `guard`.
"""

import time
from itertools import chain

from runtime.device import Clock
from runtime.failure.detection.dead_ranks import lost
from runtime.failure.detection.heartbeat import HeartbeatTask
from runtime.failure.detection.instruction_pointer import ALL_STAGES, InstructionPointer
from runtime.failure.detection.monitored_barrier import MonitoredBarrier, different
from runtime.failure.detection.periodic import PeriodicThread
from runtime.failure.detection.watchdog import Watchdog
from runtime.failure.errors import AgreementError
from runtime.failure.forced_exit import ForcedExit
from runtime.failure.report import Failure
from runtime.failure.state import FailureState
from runtime.failure.store import FailureStore
from runtime.transport.protocol import ConnectionLostError, Transport
from runtime.transport.rendezvous import RendezvousStore

GRACE_SECONDS = 1.0
"""How long the failing rank stays until all have read why: it may host the store."""

READ_SECONDS = 5.0
"""How long ranks that wait may take to read why they wait in vain, on a machine that is busy."""

ANSWER_SECONDS = 0.5

LONGEST_WAIT = 24 * 3600.0
"""Seconds after which a transfer gives up in any case, a second line of defence. A rank may rightly
wait for long: while another one loads a model, waits for its first data, or forwards."""


class Session:
    """What one rank needs for one attempt, from the barrier before it to the one after it."""

    def __init__(
        self,
        transport: Transport,
        ranks: RendezvousStore,
        barrier: MonitoredBarrier,
        timeout: float,
        heartbeat_thread: PeriodicThread,
        watchdog_thread: PeriodicThread,
    ) -> None:
        """Prepare to watch this rank.

        Args:
            transport: Connection to the others.
            ranks: They, and the store where they learn of failures.
            barrier: Of this attempt.
            timeout: Seconds without progress after which it is ended.
            heartbeat_thread: Runs the heartbeats.
            watchdog_thread: Runs the watchdog.
        """
        self._transport, self._ranks, self._timeout = transport, ranks, timeout
        self._barrier = barrier
        clock = Clock(transport.device)
        self.generation = transport.generation
        self.state = state = FailureState(transport.abandon)
        self.pointer = pointer = InstructionPointer(state.check, clock)
        store = FailureStore(ranks, self.generation)
        self._heartbeats = HeartbeatTask(store, ranks, pointer, state, heartbeat_thread, barrier)
        forced_exit = ForcedExit() if clock.on_gpu else None
        self._watchdog = Watchdog(
            timeout, ranks, pointer, self._heartbeats, state, watchdog_thread, forced_exit
        )

    def meet(self) -> None:
        """Begin to watch, wait until every rank has come, and make sure that all begin the same.

        Raises:
            AgreementError: they do not.
            RemoteError: a rank will not come.
            RuntimeError: no thread can be started to watch it.
        """
        self._heartbeats.start()
        self._watchdog.start()
        if not self._transport.usable:
            self._wait_for_all()
            FailureStore(self._ranks, self.generation - 1).forget()
            self._transport.open(max(LONGEST_WAIT, (self._ranks.size + 1) * self._timeout))
        self.pointer.phase(f"the beginning of {self._barrier.task}", waits_for=ALL_STAGES)
        pipeline = self._transport.gather_objects(self._barrier.task)
        replicas = self._transport.gather_from_replicas(pipeline)
        self._barrier.over, self._watchdog.met = True, time.monotonic()
        tasks: dict[str, list[str]] = {}
        for name, task in zip(self._ranks.names, chain.from_iterable(replicas), strict=True):
            tasks.setdefault(task, []).append(name)
        if len(tasks) > 1:
            raise AgreementError(different(tasks))

    def part(self) -> None:
        """Wait until every rank has come to the end: none returns a result before."""
        self.pointer.drain()
        self.pointer.phase("the end of the evaluation", waits_for=ALL_STAGES)
        self._transport.gather_objects(None)
        self._transport.gather_from_replicas(None)

    def fail(self, error: BaseException) -> Failure:
        """Find out, or tell the others, why the attempt failed; return when all ranks know."""
        self._watchdog.stop()
        ranks, heartbeats, state = self._ranks, self._heartbeats, self.state
        at, name = self.pointer.status().at, ranks.names[ranks.rank]
        try:
            if state.failure is None:
                if isinstance(error, ConnectionLostError):
                    own = lost(error, ranks, at, heartbeats, state)  # perhaps a rank left
                    self._barrier.over = True
                else:
                    self._barrier.over = True
                    own = Failure.of(error, reporter=ranks.rank, name=name, at=at)
                if own is not None:
                    self._tell(own)
            assert state.failure is not None
            alive = state.failure.kind == "disagreement"  # and about to read it, wherever they wait
            grace = READ_SECONDS if alive else GRACE_SECONDS
            state.wait_until_acknowledged(grace + heartbeats.slack)
        finally:  # also after Ctrl-C: the others go on to the next generation
            state.abort()
        return state.failure

    def _tell(self, failure: Failure) -> None:
        self.state.reported = failure
        told = self._heartbeats.refresh(ANSWER_SECONDS)
        self.state.set(failure)  # unless the store has another one
        if not told:
            self.state.acknowledged_by_all()  # as many as can be

    def stop(self) -> None:
        """Watch no more."""
        self._watchdog.stop()
        self._heartbeats.stop()

    def _wait_for_all(self) -> None:
        """Wait until every rank has come: none should be caught in the opening of channels."""
        heartbeats = self._heartbeats
        watching, heartbeats.watching = heartbeats.watching, True
        pause = 0.001
        while len(heartbeats.latest) < self._ranks.size:
            heartbeats.refresh(ANSWER_SECONDS)
            self.state.check()
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        heartbeats.watching = watching
