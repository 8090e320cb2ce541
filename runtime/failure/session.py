"""A session: one attempt of a run, with all that watches it on this rank.

A run whose ranks had once agreed to give an attempt up, while this one was elsewhere, takes the
next: see `guard`.
"""

import time

from runtime.device import Clock
from runtime.failure.dead_ranks import lost
from runtime.failure.forced_exit import LastResort
from runtime.failure.heartbeat import Courier
from runtime.failure.monitored_barrier import Rendezvous, different
from runtime.failure.periodic import Patrol
from runtime.failure.position import EVERYONE, Pointer
from runtime.failure.report import Failure
from runtime.failure.state import Incident
from runtime.failure.store import Board, MeetingPlace
from runtime.failure.watchdog import Watchdog
from runtime.planning.handshake import AgreementError
from runtime.transport.protocol import ConnectionLostError, Transport

LINGER_SECONDS = 1.0
READ_SECONDS = 5.0
"""How long ranks that wait may take to read why they wait in vain, on a machine that is busy."""

ANSWER_SECONDS = 0.5


class Session:
    """What one rank needs for one attempt, from the rendezvous of all ranks to their parting."""

    def __init__(
        self,
        transport: Transport,
        place: MeetingPlace,
        rendezvous: Rendezvous,
        timeout: float,
        rounds: Patrol,
        watch: Patrol,
    ) -> None:
        """Begin to watch this rank.

        Args:
            transport: Connection to the others.
            place: Where they hear of each other.
            rendezvous: Of this attempt.
            timeout: Seconds without progress after which it is ended.
            rounds: Visits the courier.
            watch: Visits the watchdog.
        """
        self._transport, self._place, self._timeout = transport, place, timeout
        self._rendezvous = rendezvous
        clock = Clock(transport.device)
        self.epoch = transport.epoch
        self.incident = incident = Incident(transport.abandon)
        self.pointer = pointer = Pointer(incident.check, clock)
        board = Board(place, self.epoch)
        self._courier = Courier(board, place, pointer, incident, rounds, rendezvous)
        last_resort = LastResort() if clock.on_gpu else None
        self._watchdog = Watchdog(
            timeout, place, pointer, self._courier, incident, watch, last_resort
        )
        self._courier.start()
        self._watchdog.start()

    def meet(self) -> None:
        """Wait until every rank has come, and make sure that all begin the same.

        Raises:
            AgreementError: they do not.
            RemoteError: somebody will not come.
        """
        if not self._transport.usable:
            self._wait_for_all()
            self._transport.open((self._place.size + 1) * self._timeout)
        self.pointer.phase(f"the beginning of {self._rendezvous.task}", waits_for=EVERYONE)
        pipeline = self._transport.gather_objects(self._rendezvous.task)
        replicas = self._transport.gather_from_replicas(pipeline)
        self._rendezvous.over = True
        tasks: dict[str, list[str]] = {}
        everyone = [task for replica in replicas for task in replica]
        for name, task in zip(self._place.names, everyone, strict=True):
            tasks.setdefault(task, []).append(name)
        if len(tasks) > 1:
            raise AgreementError(different(tasks))

    def part(self) -> None:
        """Wait until every rank has come to the end: none returns a result before."""
        self.pointer.drain()
        self.pointer.phase("the end of the evaluation", waits_for=EVERYONE)
        self._transport.gather_objects(None)
        self._transport.gather_from_replicas(None)

    def settle(self, error: BaseException) -> Failure:
        """Find out, or tell the others, why the attempt failed; return when everybody knows."""
        self._watchdog.stop()
        place, courier, incident = self._place, self._courier, self.incident
        at, name = self.pointer.position().at, place.names[place.rank]
        if incident.failure is None:
            if isinstance(error, ConnectionLostError):
                mine = lost(error, place, at, courier, incident)  # perhaps somebody left
                self._rendezvous.over = True
            else:
                self._rendezvous.over = True
                mine = Failure.of(error, reporter=place.rank, stage=name, at=at)
            if mine is not None:
                incident.reported = mine
                told = courier.refresh(ANSWER_SECONDS)
                incident.settle(mine)  # unless the board has another one
                if not told:
                    incident.heard_by_all()  # as many as can be
        assert incident.failure is not None
        alive = incident.failure.kind == "disagreement"  # and about to read it, wherever they wait
        incident.linger(READ_SECONDS if alive else LINGER_SECONDS)
        incident.give_up()
        return incident.failure

    def stop(self) -> None:
        """Watch no more."""
        self._watchdog.stop()
        self._courier.stop()

    def _wait_for_all(self) -> None:
        """Wait until every rank has come: none should be caught in the opening of channels."""
        courier = self._courier
        watching, courier.watching = courier.watching, True
        pause = 0.001
        while len(courier.beats) < self._place.size:
            courier.refresh(ANSWER_SECONDS)
            self.incident.check()
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        courier.watching = watching
