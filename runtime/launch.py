"""Start the processes of a pipeline on this machine, through torch's elastic launcher."""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar
from uuid import uuid4

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class WorkerError(RuntimeError):
    """A process of the pipeline failed, and with it the run."""

    def __init__(self, rank: int, kind: str | None, reason: str, trace: str = "") -> None:
        """The first failure.

        Args:
            rank: Of the process.
            kind: Class of the exception; `None` if the process ended without one.
            reason: Text of the exception, or how the process ended.
            trace: Traceback of the exception.
        """
        super().__init__(f"stage {rank} failed: {kind + ': ' if kind else ''}{reason}")
        self.kind, self.reason, self.trace = kind, reason, trace


def launch(processes: int, function: Callable[[Argument], Result], argument: Argument) -> Result:
    """Call `function(argument)` in `processes` new processes, the ranks of one run.

    When one of them fails, the others are ended.

    Args:
        processes: The number of processes.
        function: A function that a new process can import.
        argument: Its picklable argument.

    Returns:
        What rank 0 returned.

    Raises:
        WorkerError: a process failed; the first one that did.
        KeyboardInterrupt: the run was interrupted; all processes have ended.
    """
    if sys.platform == "linux":  # the processes are all here: no other interface is needed
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="spawn",
    )
    try:
        with _quiet(_LOGGERS):
            results: dict[int, Result] = elastic_launch(config, function)(argument)
    except ChildFailedError as error:
        raise _first_failure(error) from None
    except SignalException:
        raise KeyboardInterrupt from None
    return results[0]


_LOGGERS = ("torch.distributed.elastic", "torch.multiprocessing.spawn")
"""What would print pages about a failure that is raised as one error."""


@contextmanager
def _quiet(names: Sequence[str]) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_failure(error: ChildFailedError) -> WorkerError:
    rank, failure = error.get_first_failure()
    details = failure.error_file_data.get("message", "")
    if isinstance(details, dict):
        kind, _, reason = details["message"].partition(": ")
        return WorkerError(rank, kind, reason, details.get("extraInfo", {}).get("py_callstack", ""))
    if failure.exitcode < 0:
        return WorkerError(rank, None, f"its process was ended by {failure.signal_name()}")
    return WorkerError(rank, None, f"its process ended with exit status {failure.exitcode}")
