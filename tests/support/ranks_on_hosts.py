"""Ranks of one run on several hosts, as a launcher starts them there."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from runtime import RemoteError
from tests.support.forks import forks
from tests.support.hosts import Hosts, enter

PATIENCE = 60.0
"""Seconds after which a process that has not answered hangs, for the tests."""

PORT = 29500
"""On the first host, whose network nobody else is in."""

Function = Callable[[Any, Callable[[Any], None]], Any]
"""What a rank does: with an argument, and a way to tell the test something before it ends."""


@dataclass(frozen=True)
class Ended:
    """How a rank ended, and what it had open then."""

    value: Any = None
    error: str = ""
    """Class of the exception."""
    text: str = ""
    gone: tuple[int, ...] = ()
    """Ranks that the failure says are missing."""
    at: float = 0.0
    """Seconds, on the clock that all processes share."""


class RanksOnHosts:
    """Starts the ranks; ends them, whatever state they are in, on exit."""

    def __init__(
        self,
        hosts: Hosts,
        where: Sequence[int],
        function: Function,
        argument: Any = None,
        **variables: str,
    ) -> None:
        """Call `function` on a rank for each number of a host in `where`, with these variables."""
        context = forks()
        self.processes, self._ends = [], list[Connection]()
        for rank, host in enumerate(where):
            local = [other for other, there in enumerate(where) if there == host]
            environment = {
                "RANK": str(rank),
                "WORLD_SIZE": str(len(where)),
                "LOCAL_RANK": str(local.index(rank)),
                "LOCAL_WORLD_SIZE": str(len(local)),
                "MASTER_ADDR": hosts.addresses[where[0]],
                "MASTER_PORT": str(PORT),
            }
            environment |= variables
            ours, theirs = context.Pipe()
            work = (hosts.namespace(host), environment, function, argument, theirs)
            process = context.Process(target=_work, args=work, daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self._ends.append(ours)

    def __enter__(self) -> "RanksOnHosts":
        return self

    def __exit__(self, *_: object) -> None:
        for process, end in zip(self.processes, self._ends, strict=True):
            if process.is_alive():
                process.kill()
            process.join(PATIENCE)
            end.close()

    def told(self, ranks: Sequence[int] | None = None) -> list[Any]:
        """The next thing that each of some ranks tells; its end is an `Ended`."""
        asked = range(len(self._ends)) if ranks is None else ranks
        return [self._next(rank) for rank in asked]

    def first_told(self) -> tuple[int, Any]:
        """The next thing that any rank tells, and which one it is."""
        ready = wait(self._ends, PATIENCE)
        assert ready, "all ranks hang"
        rank = self._ends.index(ready[0])  # type: ignore[arg-type]
        return rank, self._next(rank)

    def exit_statuses(self, ranks: Sequence[int]) -> list[int | None]:
        """Of processes that are about to end by themselves."""
        for rank in ranks:
            self.processes[rank].join(PATIENCE)
        return [self.processes[rank].exitcode for rank in ranks]

    def _next(self, rank: int) -> Any:
        end = self._ends[rank]
        assert wait([end], PATIENCE), f"rank {rank} hangs"
        try:
            return end.recv()
        except EOFError:
            return None


def _work(
    namespace: str, environment: dict[str, str], function: Function, argument: Any, end: Connection
) -> None:
    enter(namespace)
    torch.set_num_threads(1)
    os.environ.pop("GLOO_SOCKET_IFNAME", None)
    os.environ.update(environment)
    try:
        ended = Ended(value=function(argument, end.send))
    except RemoteError as error:
        name, failure = type(error).__name__, error.failure
        ended = Ended(None, name, str(error), failure.gone, time.monotonic())
    except Exception as error:
        ended = Ended(None, type(error).__name__, str(error), at=time.monotonic())
    end.send(ended)
