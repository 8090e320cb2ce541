"""A pipeline of real processes on CPUs that evaluates under faults, again and again."""

import gc
import os
import signal
import socket
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from runtime import Evaluator, RemoteError
from runtime.failure.report import Failure
from runtime.transport import Channels
from tests.chaos.faults import MICRO_BATCHES, Fault, Saboteur, Trap, layers
from tests.support.forks import forks

PATIENCE = 30.0
"""Seconds after which a process that has not answered hangs, for the tests."""


FEW_SEGMENTS = 16


@dataclass(frozen=True)
class Setup:
    """How the processes of a cluster are connected."""

    stages: int
    overlap: bool = False
    timeout: float = 60.0
    store_on_rank_0: bool = False
    """As with a plain `init_process_group`; else on the parent, as torchrun does it."""
    channels: Channels = "memory"
    replicas: int = 1

    @property
    def processes(self) -> int:
        """Stages of all replicas; those of replica 0 come first."""
        return self.stages * self.replicas


@dataclass(frozen=True)
class Outcome:
    """What one process saw of an evaluation."""

    loss: float | None
    error: str | None
    """Class of the exception."""
    text: str
    notes: tuple[str, ...]
    failure: Failure | None
    """What a `RemoteError` carries."""
    ended: float
    """Seconds, on the clock that all processes share."""
    sockets: int
    segments: int
    """Of shared memory, its own and those of others."""
    threads: int


class Cluster:
    """Starts the processes; ends them, whatever state they are in, on exit."""

    def __init__(self, setup: Setup) -> None:
        context = forks()
        self.setup = setup
        self._struck = context.Value("d", 0.0)
        self._store: Any = None
        if setup.store_on_rank_0:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
        else:
            self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            port = self._store.port
        self._ends: list[Connection] = []
        self.processes = []
        for rank in range(setup.processes):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(rank, setup, port, theirs, self._struck), daemon=True
            )
            process.start()
            theirs.close()
            self._ends.append(ours)
            self.processes.append(process)

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGKILL)
            process.join(PATIENCE)
        for end in self._ends:
            end.close()
        self._store = None

    def evaluate(self, fault: Fault) -> dict[int, Outcome]:
        """Evaluate under a fault: what each process that answers saw, by rank."""
        self._struck.value = 0.0
        for end, process in zip(self._ends, self.processes, strict=True):
            if process.is_alive():
                end.send(fault)
        silent = {fault.stage} if fault.kind in ("killed", "exits", "stopped", "hangs") else set()
        return {r: self._answer(r) for r in range(self.setup.processes) if r not in silent}

    def resume(self, stage: int) -> Outcome:
        """Let a stopped process go on, and hear what it saw."""
        os.kill(self.processes[stage].pid, signal.SIGCONT)
        return self._answer(stage)

    def seconds(self, outcomes: dict[int, Outcome]) -> float:
        """From the fault to the last answer."""
        return max(outcome.ended for outcome in outcomes.values()) - self._struck.value

    def _answer(self, stage: int) -> Outcome:
        assert self._ends[stage].poll(PATIENCE), f"stage {stage} hangs"
        answer = self._ends[stage].recv()
        assert isinstance(answer, Outcome)
        return answer


def _work(rank: int, setup: Setup, port: int, end: Connection, struck: Any) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    host = setup.store_on_rank_0 and rank == 0
    store = dist.TCPStore("127.0.0.1", port, is_master=host, wait_for_workers=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=setup.processes)
    trap, model = Trap(rank, struck), layers(setup.stages)
    saboteur = model[2 * (rank % setup.stages) + 1]
    assert isinstance(saboteur, Saboteur)
    saboteur.trap = trap
    evaluator = Evaluator(
        model,
        loss_fn=trap.in_loss,
        partition=[2 * stage for stage in range(setup.stages + 1)],
        overlap=setup.overlap,
        timeout=setup.timeout,
        channels=setup.channels,
        replicas=setup.replicas,
        check_finite=True,
        listeners=(trap,),
    )
    while True:
        try:
            trap.fault = end.recv()
        except EOFError:
            return
        end.send(_evaluate(evaluator, trap))


def _evaluate(evaluator: Evaluator, trap: Trap) -> Outcome:
    loss: float | None = None
    error: BaseException | None = None
    try:
        loss = evaluator.eval_batch(trap.data(), num_micro_batches=MICRO_BATCHES).loss
    except Exception as raised:
        error = raised
    ended = time.monotonic()
    outcome = Outcome(
        loss=loss,
        error=None if error is None else type(error).__name__,
        text=str(error or ""),
        notes=tuple(getattr(error, "__notes__", ())),
        failure=error.failure if isinstance(error, RemoteError) else None,
        ended=ended,
        sockets=_open("socket:"),
        segments=_segments(),
        threads=threading.active_count(),
    )
    del error
    return outcome


def _segments() -> int:
    """Segments of shared memory, without those of which only the collector has not heard yet."""
    if _open("/memfd:") > FEW_SEGMENTS:
        gc.collect()  # takes a tenth of a second
    return _open("/memfd:")


def _open(kind: str) -> int:
    """How many descriptors of a kind this process holds."""
    links = []
    for number in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:  # the listing's own descriptor
            continue
    return sum(link.startswith(kind) for link in links)
