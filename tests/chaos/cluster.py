"""A pipeline of real processes on CPUs that evaluates under faults, again and again."""

import gc
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from runtime import Evaluator, RemoteError
from runtime.distributed.local_run import Meeting, init_process_group, store_in
from runtime.failure.error_text import text_of
from runtime.failure.report import Failure
from runtime.failure.store import FailureStore
from runtime.transport import Channels
from runtime.transport.private_store import make_directory, remove_directory
from tests.chaos.faults import MICRO_BATCHES, Fault, Saboteur, Trap, layers
from tests.support.forks import forks
from tests.support.hosts import enter

PATIENCE = 30.0
"""Seconds after which a process that has not answered hangs, for the tests."""


DESCRIPTORS = 256
"""That a process may have open; faults use them up."""

Operation = Literal["evaluate", "save", "load"]


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
    namespaces: tuple[str, ...] = ()
    """The host of each rank (`tests.support.hosts`); the first one also hosts the store."""
    address: str = "127.0.0.1"
    """Of the store."""
    private: bool = False
    """Whether they meet in a directory, as those of a run that opens no port."""

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
    threads: tuple[str, ...]
    """Their names."""


@dataclass(frozen=True)
class Order:
    """What the processes are to do next."""

    faults: tuple[Fault, ...]
    operation: Operation
    directory: str
    """Of the checkpoint that is saved or loaded."""


class Cluster:
    """Starts the processes; ends them, whatever state they are in, on exit."""

    def __init__(self, setup: Setup) -> None:
        context = forks()
        self.setup = setup
        self._struck = context.Array("d", setup.processes)
        self._silent = context.Array("b", setup.processes)
        self._store: Any = None
        self._servers = []
        self._directory = make_directory() if setup.private else None
        port = 0
        if setup.private:
            pass
        elif setup.namespaces:
            ours, theirs = context.Pipe()
            work = (setup.namespaces[0], setup.address, theirs)
            self._servers = [context.Process(target=_serve, args=work, daemon=True)]
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
            shared = (theirs, self._struck, self._silent)
            process = context.Process(target=_work, args=(rank, setup, where, *shared), daemon=True)
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

    def evaluate(self, *faults: Fault) -> dict[int, Outcome]:
        """Evaluate under faults: what each process that answers saw, by rank."""
        return self.do("evaluate", "", *faults)

    def do(self, operation: Operation, directory: str, *faults: Fault) -> dict[int, Outcome]:
        """The same of any operation."""
        for rank, process in enumerate(self.processes):
            self._struck[rank], self._silent[rank] = 0.0, False
            if process.is_alive():
                self._ends[rank].send(Order(faults, operation, directory))
            else:
                self._silent[rank] = True
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


def _serve(namespace: str, address: str, end: Connection) -> None:
    """Host the store, as torchrun does it."""
    enter(namespace)
    store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)
    end.send(store.port)
    time.sleep(3600)


def _meet(rank: int, setup: Setup, where: int | Path, end: Connection) -> None:
    """Join the others through the store at a port, or in a directory; a host tells the port."""
    if isinstance(where, Path):
        meeting = Meeting(store_in(where, setup.processes), rank, setup.processes)
        init_process_group(torch.device("cpu"), timedelta(minutes=5), meeting, connected=False)
        return
    host = setup.store_on_rank_0 and rank == 0
    store = dist.TCPStore(setup.address, where, is_master=host, wait_for_workers=False)
    if host:
        end.send(store.port)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=setup.processes)


def _work(
    rank: int, setup: Setup, where: int | Path, end: Connection, struck: Any, silent: Any
) -> None:
    if setup.namespaces:
        enter(setup.namespaces[rank])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what runs beside a shell
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "eth0" if setup.namespaces else "lo"
    _meet(rank, setup, where, end)
    trap, model = Trap(rank, struck, silent), layers(setup.stages)
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
    _set_traps(evaluator, trap)
    while True:
        try:
            order: Order = end.recv()
        except EOFError:
            return
        trap.faults = order.faults
        end.send(_attempt(evaluator, trap, order))


def _set_traps(evaluator: Evaluator, trap: Trap) -> None:
    """Have the trap strike where neither layers nor listeners come."""
    transport: Any = evaluator._transport
    places = (transport, "open"), (transport, "connect"), (transport._local, "open")
    for number, (owner, name) in enumerate(places):
        setattr(owner, name, _before(getattr(owner, name), partial(trap.strike, "opening", number)))
    acknowledge = FailureStore.acknowledge
    FailureStore.acknowledge = _before(acknowledge, partial(trap.strike, "telling"))  # type: ignore[method-assign]


def _before(function: Callable[..., Any], act: Callable[[], None]) -> Callable[..., Any]:
    def both(*arguments: Any, **options: Any) -> Any:
        act()
        return function(*arguments, **options)

    return both


def _attempt(evaluator: Evaluator, trap: Trap, order: Order) -> Outcome:
    loss: float | None = None
    error: BaseException | None = None
    try:
        match order.operation:
            case "evaluate":
                loss = evaluator.eval_batch(trap.data(), num_micro_batches=MICRO_BATCHES).loss
            case "save":
                evaluator.save_state_dict(order.directory)
            case "load":
                evaluator.load_state_dir(order.directory)
    except BaseException as raised:
        error = raised
    ended = time.monotonic()
    name, text = ("", "") if error is None else (type(error).__name__, text_of(error))
    notes = tuple(getattr(error, "__notes__", ()))
    failure = error.failure if isinstance(error, RemoteError) else None
    del error  # with all that its frames hold
    if order.faults == (Fault("none", 0),):
        gc.collect()  # what only cycles hold is not left behind
    return Outcome(
        loss=loss,
        error=name or None,
        text=text,
        notes=notes,
        failure=failure,
        ended=ended,
        sockets=_open("socket:"),
        segments=_open("/memfd:"),
        threads=tuple(sorted(thread.name for thread in threading.enumerate())),
    )


def _open(kind: str) -> int:
    """How many descriptors of a kind this process holds."""
    links = []
    for number in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:  # the listing's own descriptor
            continue
    return sum(link.startswith(kind) for link in links)
