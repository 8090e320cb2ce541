"""Ranks of a pipeline as processes, which may end as they like; several of them on one GPU."""

import faulthandler
import json
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from benchmarks.gpu.machine import Machine
from runtime.transport.torch_distributed.groups.nccl_settings import set_process_defaults

Function = Callable[[Machine, Any], Any]
"""What a rank does: `(machine, argument) -> value`, both picklable."""

CONNECT = timedelta(seconds=30)
END_SECONDS = 5.0

SAME_HOST = {
    "NCCL_NET": "Socket",
    "NCCL_SOCKET_IFNAME": "lo",
}
"""Transfers between processes that NCCL takes to be on several hosts, on this one."""


@dataclass(frozen=True)
class Approach:
    """How several ranks share a machine with fewer GPUs than ranks."""

    name: str
    environment: dict[str, str] = field(default_factory=dict)
    """`{rank}` is the number of the process."""


APPROACHES = (
    Approach("NCCL_HOSTID", {"NCCL_HOSTID": "schedcc-{rank}", **SAME_HOST}),
    Approach("NCCL_MULTI_RANK_GPU_ENABLE", {"NCCL_MULTI_RANK_GPU_ENABLE": "1"}),
)
OWN_GPUS = Approach("a GPU for each rank")
GLOO = Approach("gloo")
FILE = "several_ranks.json"


@dataclass(frozen=True)
class Answer:
    """What became of one rank."""

    value: Any = None
    error: str = ""
    """Class of the exception."""
    text: str = ""
    ended: bool = False
    """Whether the process ended without an answer."""

    def __str__(self) -> str:
        if self.ended:
            return "ended"
        return f"{self.error}: {self.text}" if self.error else str(self.value)


class LeftOut(Exception):  # noqa: N818 - no error: the machine cannot do it
    """A row cannot be tried here; the text says why."""


class RanksError(AssertionError):
    """A rank did not do what it was to do."""


def run_ranks(
    size: int,
    function: Function,
    argument: Any,
    machine: Machine,
    approach: Approach,
    patience: float = 60.0,
    silent: tuple[int, ...] = (),
) -> list[Answer]:
    """Call `function(machine, argument)` on each rank, in a process of its own.

    Args:
        size: The number of ranks.
        function: Of a module, so that another process finds it.
        argument: Picklable.
        machine: That of this process.
        approach: How ranks share it.
        patience: Seconds after which those that have not answered are killed.
        silent: Ranks that are not waited for when all others have answered.
    """
    context = multiprocessing.get_context("forkserver")  # torch is imported once, without CUDA
    context.set_forkserver_preload(["benchmarks.gpu.preload"])
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    waiting: dict[Connection, int] = {}
    until = time.monotonic() + patience
    processes = []
    for rank in range(size):
        ours, theirs = context.Pipe()
        there = replace(machine, index=rank % max(1, torch.cuda.device_count()))
        work = (rank, size, store.port, function, argument, there, approach, patience, theirs)
        processes.append(context.Process(target=_work, args=work, daemon=True))
        processes[-1].start()
        theirs.close()
        waiting[ours] = rank
    answers = [Answer(ended=True)] * size
    try:
        while set(waiting.values()) - {*silent}:
            ready = wait(list(waiting), max(0.0, until - time.monotonic()))
            if not ready:
                break
            for end in ready:
                assert isinstance(end, Connection)
                rank = waiting.pop(end)
                try:
                    answers[rank] = end.recv()
                except EOFError:
                    continue
    finally:
        for process in processes:
            process.kill()
            process.join(END_SECONDS)
    return answers


def values_of(answers: list[Answer]) -> list[Any]:
    """What the ranks returned.

    Raises:
        RanksError: one of them did not.
    """
    wrong = [f"rank {n}: {answer}" for n, answer in enumerate(answers) if answer.error] + [
        f"rank {n} ended" for n, answer in enumerate(answers) if answer.ended
    ]
    if wrong:
        raise RanksError("; ".join(wrong))
    return [answer.value for answer in answers]


def remember(folder: Path, approach: Approach | None) -> None:
    """Note which approach works, for the rows that follow."""
    found = None if approach is None else [approach.name, approach.environment]
    (folder / FILE).write_text(json.dumps(found))


def approach_in(folder: Path, machine: Machine) -> Approach:
    """The one that works.

    Raises:
        LeftOut: none does.
    """
    if machine.dry:
        return GLOO
    noted = folder / FILE
    found = json.loads(noted.read_text()) if noted.exists() else None
    if found is None:
        raise LeftOut("several NCCL ranks do not work here, see row 0")
    return Approach(*found)


def _work(
    rank: int,
    size: int,
    port: int,
    function: Function,
    argument: Any,
    machine: Machine,
    approach: Approach,
    patience: float,
    end: Connection,
) -> None:
    faulthandler.dump_traceback_later(0.9 * patience)  # where it is, should it be killed
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.environ.update({k: v.format(rank=rank) for k, v in approach.environment.items()})
    try:
        store = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
        meet = {"store": store, "rank": rank, "world_size": size, "timeout": CONNECT}
        if machine.dry:
            dist.init_process_group("gloo", **meet)  # type: ignore[arg-type]
        else:
            set_process_defaults()
            torch.cuda.set_device(machine.device)
            dist.init_process_group("nccl", device_id=machine.device, **meet)  # type: ignore[arg-type]
        answer = Answer(function(machine, argument))
    except Exception as error:
        traceback.print_exc()
        answer = Answer(error=type(error).__name__, text=str(error).partition("\n")[0])
    faulthandler.cancel_dump_traceback_later()
    end.send(answer)
