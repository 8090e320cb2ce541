"""Processes that are a stage each, and work for the process that has started them.

What runs in such a process comes first, and then what the other process knows of them.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store

from runtime.device import local_device
from runtime.distributed.local_run import (
    Meeting,
    init_process_group,
    loopback_defaults,
    store_in,
)
from runtime.distributed.process_group import TIMEOUT
from runtime.failure.error_text import text_of
from runtime.failure.errors import LostPeerError, RemoteError
from runtime.language.models import ModelFiles
from runtime.language.scoring.options import ScorerOptions
from runtime.language.scoring.stage import ScoringStage, StageData
from runtime.transport.private_store import make_directory, remove_directory

END_SECONDS = 1.0
"""How long workers may take to end by themselves before they are killed."""


_PROGRAM = """
import pathlib, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells everybody; see to it once
sys.path[:], descriptor, directory = {!r}, {!r}, {!r}
from runtime.lifeline import end_with
end_with(descriptor, directory)
from runtime.imports import uncollected
with uncollected():
    from runtime.language.preload import preload
    from runtime.language.scoring.worker import main
    preload()
main(descriptor, pathlib.Path(directory))
"""


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker is told before anything else."""

    files: ModelFiles
    options: ScorerOptions
    rank: int
    stages: int
    threads: int


@dataclass(frozen=True)
class Failed:
    """A worker's last message: it cannot go on."""

    error: str
    trace: str


def join(store: Store, rank: int, stages: int, timeout: timedelta = TIMEOUT) -> torch.device:
    """Join the process group of a pipeline on this machine, as the stage `rank`."""
    os.environ.update(loopback_defaults())
    device = local_device(rank, stages)
    init_process_group(device, timeout, Meeting(store, rank, stages), connected=False)
    return device


def main(descriptor: int, directory: Path) -> None:
    """Work until the connection ends.

    Args:
        descriptor: Of this process's end of the connection.
        directory: Where all processes meet; removed when the other end is closed.
    """
    connection = Connection(descriptor)
    status = 0
    try:
        send(connection, None)  # everything is imported
        _work(connection, receive(connection), directory)
    except EOFError:
        remove_directory(directory)
    except BaseException as error:
        status = 1
        with suppress(OSError):
            said = f"{type(error).__name__}: {text_of(error)}"
            send(connection, Failed(said, traceback.format_exc()))
    os._exit(status)


def send(connection: Connection, message: Any) -> None:
    """Send by value: multiprocessing's own way to pickle tensors would share their memory."""
    connection.send_bytes(pickle.dumps(message))


def receive(connection: Connection) -> Any:
    """What the other end has sent.

    Raises:
        EOFError: it is closed.
    """
    return pickle.loads(connection.recv_bytes())


def _work(connection: Connection, settings: WorkerSettings, directory: Path) -> None:
    torch.set_num_threads(settings.threads)
    device = join(store_in(directory, settings.stages), settings.rank, settings.stages)
    stage = ScoringStage(settings.files, settings.options, stages=settings.stages, device=device)
    send(connection, None)  # the layers are loaded
    while True:
        data: StageData = receive(connection)
        stage.run(data, everywhere=False)


class WorkerError(RuntimeError):
    """A process that this one has started failed or ended."""


class Workers:
    """The processes of the stages behind the first."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self.connections: list[Connection] = []
        self.directory: Path | None = None
        """Where they meet."""
        self.grouped = False
        """Whether this process has joined a process group with them."""

    def start(self, count: int) -> Path:
        """Start them, who import what this process would import; where all of them meet."""
        self.directory = directory = make_directory()
        for _ in range(count):
            ours, theirs = socket.socketpair()
            program = _PROGRAM.format(sys.path, theirs.fileno(), str(directory))
            with theirs:
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, "-c", program],
                        stdin=subprocess.DEVNULL,
                        stdout=2,  # what it has to say goes where this process's errors go
                        pass_fds=[theirs.fileno()],
                    )
                )
            self.connections.append(Connection(ours.detach()))
        return directory

    def send(self, rank: int, message: Any) -> None:
        """Send to the process of a stage.

        Raises:
            WorkerError: it has ended.
        """
        try:
            send(self.connections[rank - 1], message)
        except OSError:
            raise self._ended(rank) from None

    def receive(self, rank: int) -> None:
        """Wait until the process of a stage is so far.

        Raises:
            WorkerError: it has ended, or cannot go on.
        """
        try:
            said = receive(self.connections[rank - 1])
        except (EOFError, OSError):
            raise self._ended(rank) from None
        if said is not None:
            raise _failed(rank, said)

    def as_they_come(self) -> Iterator[int]:
        """Wait until all processes are so far; the ranks, in the order in which they are.

        Raises:
            WorkerError: one has ended, or cannot go on; none is waited for before another.
        """
        left = {connection: rank for rank, connection in enumerate(self.connections, start=1)}
        while left:
            for connection in wait([*left]):
                assert isinstance(connection, Connection)
                rank = left.pop(connection)
                self.receive(rank)
                yield rank

    def reason(self, error: RemoteError) -> Exception:
        """Why a run failed: a process that is gone, or else what the run itself says."""
        if not isinstance(error, LostPeerError):
            return error
        gone = wait(self.connections, END_SECONDS)
        ends = [n for n, connection in enumerate(self.connections, 1) if connection in gone]
        errors = [self._ended(rank) for rank in ends]
        # Those that could say something have only seen another one go.
        silent = [error for error in errors if not getattr(error, "__notes__", None)]
        return next(iter([*silent, *errors]), error)

    def _ended(self, rank: int) -> WorkerError:
        """What became of the process of a stage that has closed its connection."""
        with suppress(EOFError, OSError):
            if isinstance(said := receive(self.connections[rank - 1]), Failed):
                return _failed(rank, said)
        process = self._processes[rank - 1]
        try:
            status = process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return WorkerError(f"stage {rank} closed its connection (process {process.pid})")
        how = f"exited with status {status}"
        if status < 0:
            how = f"was ended by {signal.Signals(-status).name}"
        return WorkerError(f"stage {rank} is gone: its process {process.pid} {how}")

    def end(self) -> None:
        """End them; what does not end by itself is killed."""
        for connection in self.connections:
            connection.close()
        latest = time.monotonic() + END_SECONDS
        for process in self._processes:
            try:
                process.wait(max(0.0, latest - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.connections.clear()
        self._processes.clear()
        if self.grouped and dist.is_initialized():
            dist.destroy_process_group()
        self.grouped = False
        if self.directory is not None:
            remove_directory(self.directory)


def _failed(rank: int, said: Failed) -> WorkerError:
    error = WorkerError(f"stage {rank} failed: {said.error}")
    error.add_note(said.trace)
    return error
