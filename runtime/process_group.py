"""The process group of a pipeline whose processes a launcher has started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from runtime.device import local_device
from runtime.transport.nccl import LAUNCH_ORDER

TIMEOUT = timedelta(minutes=5)
"""How long processes may take to find each other, and a transfer its counterpart."""


class LaunchError(ValueError):
    """The processes of a run were not started as they have to be."""


def launched() -> bool:
    """Whether a launcher (torchrun) started this process, as one rank of a run."""
    return dist.is_torchelastic_launched() or {"RANK", "WORLD_SIZE"} <= os.environ.keys()


def require_environment(stages: int | None = None) -> None:
    """Look at what the launcher has set.

    Args:
        stages: The number of processes that are wanted, if there is one.

    Raises:
        LaunchError: something is missing, no number, out of range, or not what is wanted.
    """
    numbers = {name: _number(name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
    if not os.environ.get("MASTER_ADDR"):
        raise LaunchError("MASTER_ADDR is not set, needed the address of rank 0 (torchrun sets it)")
    rank, size = numbers["RANK"], numbers["WORLD_SIZE"]
    if not 0 <= rank < size:
        raise LaunchError(f"RANK is {rank} and WORLD_SIZE {size}, needed 0 <= RANK < WORLD_SIZE")
    if stages not in (None, size):
        raise LaunchError(
            f"{stages} stages, but the launcher started {size} processes (WORLD_SIZE), "
            "needed one for each stage"
        )


@contextmanager
def process_group(timeout: timedelta = TIMEOUT) -> Iterator[torch.device]:
    """Join the default process group of a launched run, and leave it afterwards.

    NCCL where every process of this machine has a GPU, gloo elsewhere. NCCL is initialised
    eagerly, on the process's own device: point-to-point transfers, grouped or not, then share the
    group's one communicator.

    Yields:
        The device of this process.

    Raises:
        LaunchError: the launcher's environment is incomplete, or the processes do not meet.
        DeviceError: the machine has GPUs, but fewer than processes.
    """
    require_environment()
    device = local_device(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
            os.environ.setdefault(LAUNCH_ORDER, "1")
            dist.init_process_group("nccl", timeout=timeout, device_id=device)
        else:
            dist.init_process_group("gloo", timeout=timeout)
    except dist.DistError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        first_line = str(error).strip().splitlines()[0]
        raise LaunchError(
            f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} did not meet the others at "
            f"{where}: {first_line}"
        ) from error
    yield device
    dist.destroy_process_group()  # after an error, the end of the process does it


def _number(name: str) -> int:
    value = os.environ.get(name)
    if value is None:
        raise LaunchError(f"{name} is not set, needed a number (torchrun sets it)")
    if not value.isdecimal():
        raise LaunchError(f"{name} is {value!r}, needed a number")
    return int(value)
