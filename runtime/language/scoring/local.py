"""Scoring from one process, which is a stage itself and starts the others on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from runtime.distributed.local_run import store_in
from runtime.failure.errors import LostPeerError, RemoteError
from runtime.language.models import ModelFiles, locate_model
from runtime.language.scoring.batching import MicroBatch
from runtime.language.scoring.options import ScorerOptions
from runtime.language.scoring.scorer import Progress, Scorer, counted
from runtime.language.scoring.stage import Kind, ScoringStage, stage_data
from runtime.language.scoring.worker import (
    Failed,
    WorkerSettings,
    join,
    receive,
    send,
)
from runtime.modules.partition import PartitionError
from runtime.transport.private_store import make_directory, remove_directory
from schedcc.errors import require_count

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

END_SECONDS = 1.0
"""How long workers may take to end by themselves before they are killed."""


_PROGRAM = """
import pathlib, sys
sys.path[:] = {!r}
from runtime.imports import uncollected
with uncollected():
    from runtime.language.preload import preload
    from runtime.language.scoring.worker import main
    preload()
main({!r}, pathlib.Path({!r}))
"""


class WorkerError(RuntimeError):
    """A process that this one has started failed or ended."""


class LocalScorer(Scorer):
    """A scorer whose process is the first stage, and starts the others.

    The others stay until it is closed, or until this process ends, however it ends::

        with LocalScorer("smollm2", stages=2) as scorer:
            scores = scorer.score([TokenPair(context, continuation), ...])
    """

    def __init__(
        self, model: str | ModelFiles, options: ScorerOptions | None = None, *, stages: int = 1
    ) -> None:
        """Start the other processes, and load this one's layers.

        Args:
            model: What `pipeval --model` takes, or what `locate_model` found.
            options: How it is scored.
            stages: S. With more than one, this process joins a process group of
                `torch.distributed` and leaves it when the scorer is closed.

        Raises:
            ModelError: there is no such model, or it cannot be loaded.
            PartitionError: it has fewer layers than stages.
            WorkerError: a process could not be started, or load its layers.
            ValueError: a process group exists already.
        """
        require_count("stages", stages)
        files = locate_model(model) if isinstance(model, str) else model
        super().__init__(files, options or ScorerOptions())
        if stages > files.num_blocks + 2:
            raise PartitionError(
                f"{stages} stages for the {files.num_blocks + 2} layers of {files.name}, needed a "
                "layer for each stage"
            )
        self._workers = _Workers()
        self._stage: ScoringStage | None = None
        # Also at the end of this process: its threads may still wait for the others then.
        self._end = weakref.finalize(self, self._workers.end)
        try:
            self._stage = self._started(stages)
        except BaseException:
            self.close()
            raise

    @property
    def config(self) -> PreTrainedConfig:
        """The model's configuration, as transformers has it."""
        return self._open.config

    @property
    def _open(self) -> ScoringStage:
        if self._stage is None:
            raise ValueError("the scorer was closed, needed an open one: make another")
        return self._stage

    def close(self) -> None:
        """End the other processes; another time does nothing."""
        stage, self._stage = self._stage, None
        if stage is not None:
            stage.close()
        self._end()

    def _started(self, stages: int) -> ScoringStage:
        options = self.options
        if stages == 1 and not torch.cuda.is_available():
            if options.threads is not None:
                torch.set_num_threads(options.threads)
            return ScoringStage(self.files, options, stages=1)
        if dist.is_initialized():
            raise ValueError(
                "torch.distributed is initialised already, needed a process without a process "
                "group: a scorer of several stages makes one (use DistributedScorer in processes "
                "that a launcher has started)"
            )
        threads = options.threads or max(1, (os.cpu_count() or 1) // stages)
        torch.set_num_threads(threads)
        workers = self._workers
        directory = workers.start(stages - 1)
        for rank, connection in enumerate(workers.connections, start=1):
            workers.receive(rank)
            settings = (self.files, options, rank, stages, threads)
            send(connection, WorkerSettings(*settings))
        device = join(store_in(directory, stages), 0, stages)
        workers.grouped = True
        try:
            stage = ScoringStage(self.files, options, stages=stages, device=device)
        except RemoteError as error:
            raise workers.reason(error) from None
        for rank in range(1, stages):
            workers.receive(rank)
        return stage

    def _run(
        self, batches: Sequence[MicroBatch], kind: Kind, progress: Progress | None
    ) -> Sequence[torch.Tensor]:
        stage, workers = self._open, self._workers
        stages = stage.evaluator.stages
        try:
            for rank in range(1, stages):
                data = stage_data(batches, kind, first=False, last=rank == stages - 1)
                workers.send(rank, data)
            mine = stage_data(batches, kind, first=True, last=stages == 1)
            answers = stage.run(mine, everywhere=False, progress=counted(batches, progress))
        except BaseException as error:
            reason = workers.reason(error) if isinstance(error, RemoteError) else error
            self.close()
            if reason is error:
                raise
            raise reason from None  # what is gone explains all that the others saw
        assert answers is not None
        return answers


class _Workers:
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
