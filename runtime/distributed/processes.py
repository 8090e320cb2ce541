"""Start the processes of a pipeline on this machine, and end all of them with the first failure.

Nothing is restarted: who is not done when the run has failed, or was interrupted, is killed. The
processes meet in a directory that only this user can enter, so that no port is open to others. Why
this is not `torch.distributed.elastic.multiprocessing.start_processes` is measured in
docs/explanation/failure-detection.md.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, Literal, NoReturn, TypeVar

import torch

from runtime.distributed.local_run import DIRECTORY, loopback_defaults
from runtime.failure.error_text import text_of
from runtime.failure.errors import RemoteError
from runtime.failure.report import Failure
from runtime.transport.private_store import make_directory, remove_directory
from runtime.transport.shared_memory.endpoint import closed_in_children

Argument = TypeVar("Argument")
Result = TypeVar("Result")

StartMethod = Literal["spawn", "forkserver", "fork"]
"""As multiprocessing names them."""

END_SECONDS = 5.0
"""How long a killed process may take to be gone."""


class WorkerError(RuntimeError):
    """A process of the pipeline failed, and with it the run."""

    def __init__(self, message: str, kind: str | None, reason: str, trace: str = "") -> None:
        """The first failure.

        Args:
            message: The failure in one sentence.
            kind: Class of the exception; `None` if the process ended without one.
            reason: Text of the exception, or how the process ended.
            trace: Traceback of the exception.
        """
        super().__init__(message)
        self.kind, self.reason, self.trace = kind, reason, trace


class Terminated(BaseException):
    """The process was asked to end (SIGTERM)."""


@dataclass(frozen=True)
class WorkerReport:
    """What a process says when it is done."""

    result: Any = None
    kind: str | None = None
    """Class of the exception that ended it."""
    reason: str = ""
    trace: str = ""
    failure: Failure | None = None
    """What went wrong on another rank."""

    def error(self, rank: int) -> WorkerError | None:
        """The failure that it tells of."""
        if self.kind is None:
            return None
        if self.failure is None:
            message = f"stage {rank} failed: {self.kind}: {self.reason}"
            return WorkerError(message, self.kind, self.reason, self.trace)
        there = self.failure
        kind = there.error or self.kind
        return WorkerError(there.headline, kind, there.reason, there.traceback)


@dataclass(frozen=True)
class _Work(Generic[Argument, Result]):
    """What one process does; travels to it."""

    function: Callable[[Argument], Result]
    argument: Argument
    environment: dict[str, str]

    def __call__(self, end: Connection) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells everybody; see to it once
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        closed_in_children(end)  # a worker that loads data outlives this process by some seconds
        directory = Path(self.environment[DIRECTORY])
        threading.Thread(target=_end_with_parent, args=(directory,), daemon=True).start()
        os.environ.clear()  # a server of forks has the environment in which it began
        os.environ.update(self.environment)
        os.dup2(2, 1)  # what this process has to say goes to the one that started it
        try:
            end.send(WorkerReport(result=self.function(self.argument)))
        except BaseException as error:
            failure = error.failure if isinstance(error, RemoteError) else None
            trace = traceback.format_exc()
            end.send(WorkerReport(None, type(error).__name__, text_of(error), trace, failure))
        with suppress(EOFError):
            end.recv()  # tensors of the result are in this process's memory until they are read


def launch(
    processes: int,
    function: Callable[[Argument], Result],
    argument: Argument,
    *,
    first: Argument | None = None,
    start_method: StartMethod = "spawn",
) -> Result:
    """Call `function(argument)` in `processes` new processes, the ranks of one run.

    When one of them fails, the others are killed. What they print goes to standard error.

    Args:
        processes: The number of processes.
        function: A function that a new process can import.
        argument: Its picklable argument.
        first: The argument of rank 0, if it is another.
        start_method: "spawn": each process imports what it needs. "forkserver": a server has
            imported it for all (`multiprocessing.set_forkserver_preload`); standard error is that
            of the server. "fork": they share what this process has imported and `argument` refers
            to, where that is safe (on Linux, before any device or thread is used), else "spawn".

    Returns:
        What rank 0 returned.

    Raises:
        WorkerError: a process failed; the first one that did.
        KeyboardInterrupt, Terminated: the run was interrupted; all processes have ended.
    """
    method = _fork_or_spawn() if start_method == "fork" else start_method
    context: BaseContext = multiprocessing.get_context(method)
    directory = make_directory()
    workers: list[tuple[BaseProcess, Connection]] = []
    with _terminable():
        try:
            for rank in range(processes):
                ours, theirs = context.Pipe()
                work = _Work(
                    function,
                    argument if first is None or rank else first,
                    _environment(rank, processes, directory),
                )
                process = context.Process(  # type: ignore[attr-defined]
                    target=work, args=(theirs,), name=f"stage {rank}"
                )
                workers.append((process, ours))
                process.start()
                theirs.close()
                del work
            first = None  # it may be large, and is the first process's now
            return _results(workers)[0]  # type: ignore[no-any-return]
        finally:
            _end(workers)
            remove_directory(directory)


def _fork_or_spawn() -> StartMethod:
    alone = threading.active_count() == 1 and not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return "fork" if sys.platform == "linux" and alone else "spawn"


def _results(workers: list[tuple[BaseProcess, Connection]]) -> dict[int, Any]:
    """What every process returned, by rank; raises the first failure."""
    results: dict[int, Any] = {}
    ranks: dict[Any, int] = {end: rank for rank, (_, end) in enumerate(workers)}
    while ranks:
        for end in wait(list(ranks)):
            assert isinstance(end, Connection)
            rank = ranks.pop(end)
            try:
                report = end.recv()
            except EOFError:
                raise _died(rank, workers[rank][0]) from None
            if error := report.error(rank):
                raise error
            end.send(None)
            results[rank] = report.result
    return results


def _died(rank: int, process: BaseProcess) -> WorkerError:
    status = _exit_status(process)
    how = f"ended with exit status {status}"
    if status is not None and status < 0:
        how = f"was ended by {signal.Signals(-status).name}"
    return WorkerError(f"stage {rank} failed: its process {how}", None, f"its process {how}")


def _end(workers: list[tuple[BaseProcess, Connection]]) -> None:
    for process, end in workers:
        end.close()
        if process.is_alive():
            process.kill()
    for process, _ in workers:
        if process.pid is not None:
            _exit_status(process)


def _exit_status(process: BaseProcess) -> int | None:
    """How it has ended; `None`: it has not, though it was waited for."""
    # `join` would wait for a pipe, which processes that this one has forked hold as well.
    until = time.monotonic() + END_SECONDS
    while (status := process.exitcode) is None and time.monotonic() < until:
        time.sleep(0.005)
    return status


def _environment(rank: int, processes: int, directory: Path) -> dict[str, str]:
    """This process's, with what torchrun would set, and where the processes meet."""
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        DIRECTORY: str(directory),
    }
    return environment | loopback_defaults()


def _end_with_parent(directory: Path) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    remove_directory(directory)  # which the parent can do no more
    os._exit(1)


@contextmanager
def _terminable() -> Iterator[None]:
    """Make SIGTERM an exception, in the main thread, where signals arrive."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise_terminated(*_: object) -> NoReturn:
    raise Terminated
