"""A pipeline of real processes on CPUs that evaluates under faults, again and again."""

import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch.distributed as dist

from runtime.transport.private_store import make_directory, remove_directory
from tests.chaos.faults import Fault
from tests.chaos.orders import Operation, Order, Outcome, Setup
from tests.chaos.worker import serve, work
from tests.support.forks import forks

PATIENCE = 30.0
"""Seconds after which a process that has not answered hangs, for the tests."""


class Cluster:
    """Starts the processes; ends them, whatever state they are in, on exit."""

    def __init__(self, setup: Setup) -> None:
        context = forks()
        self.setup = setup
        self._struck = context.Array("d", setup.processes)
        self._silent = context.Array("b", setup.processes)
        self._broken = context.Event()
        self._store: Any = None
        self._servers = []
        self._directory = make_directory() if setup.private else None
        port = 0
        if setup.private:
            pass
        elif setup.namespaces:
            ours, theirs = context.Pipe()
            host = (setup.namespaces[0], setup.address, theirs)
            self._servers = [context.Process(target=serve, args=host, daemon=True)]
            self._servers[0].start()
            assert ours.poll(PATIENCE), "the store did not start"
            port = ours.recv()
        elif not setup.store_on_rank_0:
            self._store = dist.TCPStore(setup.address, 0, is_master=True, wait_for_workers=False)
            port = self._store.port
        self._ends: list[Connection] = []
        self.processes = []
        for rank in range(setup.processes):
            ours, theirs = context.Pipe()
            where = self._directory or port
            shared = (theirs, self._struck, self._silent, self._broken)
            process = context.Process(target=work, args=(rank, setup, where, *shared), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self.processes.append(process)
            if setup.store_on_rank_0 and rank == 0:
                assert ours.poll(PATIENCE), "the store did not start"
                port = ours.recv()

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self.processes, *self._servers):
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGKILL)
            process.join(PATIENCE)
        for end in self._ends:
            end.close()
        self._store = None
        if self._directory is not None:
            remove_directory(self._directory)

    def evaluate(
        self, *faults: Fault, outside: Callable[[], None] | None = None
    ) -> dict[int, Outcome]:
        """Evaluate under faults: what each process that answers saw, by rank.

        Args:
            faults: That happen.
            outside: What this process does when it is time for a fault of the network.
        """
        return self.do("evaluate", "", *faults, outside=outside)

    def do(
        self,
        operation: Operation,
        directory: str,
        *faults: Fault,
        outside: Callable[[], None] | None = None,
    ) -> dict[int, Outcome]:
        """The same of any operation."""
        self._broken.clear()
        for rank, process in enumerate(self.processes):
            self._struck[rank], self._silent[rank] = 0.0, False
            if process.is_alive():
                self._ends[rank].send(Order(faults, operation, directory))
            else:
                self._silent[rank] = True
        if outside is not None:
            until = time.monotonic() + PATIENCE
            while not any(self._struck):
                assert time.monotonic() < until, f"{faults} did not happen"
                time.sleep(0.001)
            outside()
            self._struck[:] = [time.monotonic() * (when > 0) for when in self._struck]
            self._broken.set()
        answers = {rank: self._answer(rank) for rank in range(self.setup.processes)}
        return {rank: answer for rank, answer in answers.items() if answer is not None}

    def struck(self, fault: Fault) -> bool:
        """Whether a fault has happened in what was done last, as far as its rank tells."""
        return self._struck[fault.stage] > 0

    def resume(self, stage: int) -> Outcome:
        """Let a stopped process go on, and hear what it saw."""
        self._silent[stage] = False
        os.kill(self.processes[stage].pid, signal.SIGCONT)
        answer = self._answer(stage)
        assert answer is not None
        return answer

    def seconds(self, outcomes: dict[int, Outcome]) -> float:
        """From the last fault to the last answer; 0 if there is nobody left to answer."""
        struck = max(self._struck)
        return max((outcome.ended for outcome in outcomes.values()), default=struck) - struck

    def _answer(self, rank: int) -> Outcome | None:
        """What a process saw; `None` of one that will not answer."""
        until = time.monotonic() + PATIENCE
        while not self._ends[rank].poll(0.01):
            if self._silent[rank]:
                return None
            assert time.monotonic() < until, f"stage {rank} hangs"
        try:
            answer = self._ends[rank].recv()
        except EOFError:
            assert self._silent[rank], f"stage {rank} ended"
            return None
        assert isinstance(answer, Outcome)
        return answer
