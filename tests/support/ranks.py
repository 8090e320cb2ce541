"""Ranks that each do something of their own, in processes that may end as they like."""

import os
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from tests.support.forks import forks

PATIENCE = 60.0
"""Seconds after which a process that has not answered hangs, for the tests."""

Function = Callable[[Any], Any]


class Said(NamedTuple):
    """What became of an attempt."""

    error: str = ""
    """Class of the exception."""
    text: str = ""
    value: Any = None


def attempt(function: Callable[[], Any]) -> Said:
    """What `function` returns or raises."""
    try:
        return Said(value=function())
    except Exception as error:
        return Said(type(error).__name__, str(error))


def run_ranks(
    size: int,
    function: Function,
    argument: Any = None,
    backend: str | None = "gloo",
    patience: float = PATIENCE,
) -> list[Any]:
    """Call `function(argument)` on `size` ranks of a default process group.

    Returns:
        What each rank returned, or the exception that it raised; `None` if its process ended first.
    """
    context = forks()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ends: dict[Connection, int] = {}
    processes = []
    for rank in range(size):
        ours, theirs = context.Pipe()
        work = (rank, size, store.port, backend, function, argument, theirs)
        processes.append(context.Process(target=_work, args=work))
        processes[-1].start()
        theirs.close()
        ends[ours] = rank
    answers: list[Any] = [None] * size
    try:
        while ends:
            ready = wait(list(ends), None if patience == float("inf") else patience)
            assert ready, f"ranks {sorted(ends.values())} hang"
            for end in ready:
                rank = ends.pop(end)  # type: ignore[arg-type]
                try:
                    answers[rank] = end.recv()  # type: ignore[union-attr]
                except EOFError:
                    continue
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join(PATIENCE)
    return answers


def _work(
    rank: int,
    size: int,
    port: int,
    backend: str | None,
    function: Function,
    argument: Any,
    end: Connection,
) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    dist.barrier()  # all are connected before one of them ends
    try:
        end.send(function(argument))
    except Exception as error:
        end.send(error)
        raise
