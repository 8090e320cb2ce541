"""The process group of a pipeline whose processes a launcher has started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from runtime.device import local_device
from runtime.distributed.launch_environment import (
    LaunchError,
    launched_process,
    processes_of_launcher,
)
from runtime.distributed.local_run import DIRECTORY, Meeting, init_process_group, store_in
from runtime.distributed.network_interface import choose_interface
from runtime.distributed.slurm import meeting_place
from runtime.transport.addresses import INTERFACE

__all__ = [
    "TIMEOUT",
    "LaunchError",
    "launched",
    "process_group",
    "processes_of_launcher",
    "require_environment",
]

TIMEOUT = timedelta(minutes=5)
"""How long processes may take to find each other, and a transfer its counterpart."""


def launched() -> bool:
    """Whether a launcher started this process, as one rank of a run.

    Raises:
        LaunchError: the environment says half of it.
    """
    return launched_process() is not None


def require_environment(ranks: int | None = None, stages: int | None = None) -> None:
    """Look at what the launcher has set, and set what torch looks for.

    Args:
        ranks: The number of processes that are wanted, if there is one.
        stages: The stages that they hold; default: one each.

    Raises:
        LaunchError: something is missing, no number, out of range, or not what is wanted.
    """
    found = launched_process()
    if found is None:
        raise LaunchError("RANK is not set, needed a number (torchrun sets it)")
    if ranks not in (None, found.processes):
        each = "stage" if stages in (None, ranks) else "rank"
        raise LaunchError(
            f"{ranks} {each}s, but the launcher started {found.processes} processes "
            f"({found.variable}), needed one for each {each}"
        )
    if os.environ.get(DIRECTORY):
        return
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if found.launcher == "Slurm":
        told = meeting_place(os.environ)
        os.environ.update({name: told[name] for name in missing if name in told})
        missing = [name for name in missing if name not in told]
    if missing and found.launcher != "torchrun":
        raise LaunchError(
            f"{found.launcher} started {found.processes} processes ({found.variable}), which can "
            f"be one run only where {' and '.join(missing)} say where rank 0 is: set them, or "
            f"start torchrun (a single process: unset {found.variable})"
        )
    if "MASTER_ADDR" in missing:
        raise LaunchError("MASTER_ADDR is not set, needed the address of rank 0 (torchrun sets it)")
    if "MASTER_PORT" in missing:
        raise LaunchError("MASTER_PORT is not set, needed a number (torchrun sets it)")
    if not os.environ["MASTER_PORT"].isdecimal():
        raise LaunchError(f"MASTER_PORT is {os.environ['MASTER_PORT']!r}, needed a number")
    if found.launcher != "torchrun":
        os.environ.update(
            RANK=str(found.rank),
            WORLD_SIZE=str(found.processes),
            LOCAL_WORLD_SIZE=str(found.local_processes),
        )
        if found.local_rank is not None:
            os.environ["LOCAL_RANK"] = str(found.local_rank)


@contextmanager
def process_group(
    timeout: timedelta = TIMEOUT, *, connected: bool = True
) -> Iterator[torch.device]:
    """Join the default process group of a launched run, and leave it afterwards.

    NCCL where every process of this machine has a GPU, gloo elsewhere.

    Args:
        timeout: How long processes may take to find each other, and a transfer its counterpart.
        connected: Whether anything but a `TorchTransport` uses the group, see
            `runtime.distributed.local_run.init_process_group`.

    Yields:
        The device of this process.

    Raises:
        LaunchError: the launcher's environment is incomplete, or the processes do not meet.
        DeviceError: the machine has GPUs, but fewer than processes, or which is this process's
            cannot be known.
    """
    require_environment()
    device = _local_device()
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    directory, on_gpu = os.environ.get(DIRECTORY), device.type == "cuda"
    if not on_gpu and not directory:
        found = launched_process()
        choose_interface(several_hosts=found is None or found.processes > found.local_processes)
    try:
        meeting = (
            Meeting(store_in(Path(directory), processes), rank, processes) if directory else None
        )
        init_process_group(device, timeout, meeting, connected=connected)
    except RuntimeError as error:
        where = directory or f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        if not directory and not on_gpu and INTERFACE in os.environ:
            where += f" through the interface {os.environ[INTERFACE]} ({INTERFACE})"
        first_line = str(error).strip().splitlines()[0]
        if "Duplicate GPU" in str(error):
            first_line = "several processes of one machine have the same GPU, needed one for each"
        raise LaunchError(
            f"rank {rank} of {processes} did not meet the others at {where}: {first_line}"
        ) from error
    yield device
    dist.destroy_process_group()  # after an error, the end of the process does it


def _local_device() -> torch.device:
    local_rank = os.environ.get("LOCAL_RANK", "0" if os.environ["WORLD_SIZE"] == "1" else None)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return local_device(None if local_rank is None else int(local_rank), processes)
