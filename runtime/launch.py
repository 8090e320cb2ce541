"""Start the processes of a pipeline on this machine, through torch's elastic launcher."""

import os
import sys
from collections.abc import Callable
from typing import TypeVar

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class WorkerError(RuntimeError):
    """A process of the pipeline failed, and with it the run."""

    def __init__(self, rank: int, kind: str, message: str, trace: str) -> None:
        """The first failure: its rank, the exception's class and text, and its traceback."""
        super().__init__(f"stage {rank} failed: {kind}: {message}")
        self.kind, self.reason, self.trace = kind, message, trace


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
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="spawn",
    )
    try:
        results: dict[int, Result] = elastic_launch(config, function)(argument)
    except ChildFailedError as error:
        raise _first_failure(error) from None
    except SignalException:
        raise KeyboardInterrupt from None
    return results[0]


def _first_failure(error: ChildFailedError) -> WorkerError:
    rank, failure = error.get_first_failure()
    details = failure.error_file_data.get("message", failure.message)
    if not isinstance(details, dict):  # killed by a signal, or gone without a word
        return WorkerError(rank, "process ended", str(failure.message), "")
    kind, _, message = details["message"].partition(": ")
    trace = details.get("extraInfo", {}).get("py_callstack", "")
    return WorkerError(rank, kind, message, trace)
