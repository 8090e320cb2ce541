"""Runs on one machine, whose processes this project starts itself: nobody else can take part."""

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, Store

from runtime.transport.private_store import OF_TORCH, require_private
from runtime.transport.shared_memory.sockets import host_key
from runtime.transport.torch_distributed.groups.backends import UNCONNECTED
from runtime.transport.torch_distributed.groups.nccl_settings import set_process_defaults

DIRECTORY = "SCHEDCC_DIRECTORY"
"""The variable that names the directory in which the processes of a local run meet."""


class Meeting(NamedTuple):
    """How one process of a local run finds the others."""

    store: Store
    rank: int
    world_size: int


def loopback_defaults() -> dict[str, str]:
    """Variables that keep gloo and NCCL to this machine, unless the user has set them."""
    loopback = "lo" if sys.platform == "linux" else "lo0"
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    return {name: os.environ.get(name, loopback) for name in names}


def store_in(directory: Path, processes: int) -> Store:
    """The store of torch in the directory of a run of so many processes.

    Raises:
        PrivateStoreError: others can enter the directory.
    """
    require_private(directory)
    return FileStore(str(directory / OF_TORCH), processes)


def init_process_group(
    device: torch.device,
    timeout: timedelta,
    meeting: Meeting | None = None,
    *,
    connected: bool = True,
) -> None:
    """Make the default process group: NCCL for a GPU, else gloo.

    NCCL is initialised eagerly, on the process's own device: point-to-point transfers, grouped or
    not, then share the group's one communicator.

    Args:
        device: Of this process.
        timeout: How long a wait may take.
        meeting: Of a local run; default: what the launcher has set.
        connected: Whether anything but a `TorchTransport` uses the group. If not, CPUs that share
            memory need no operation of its own, and no port is opened.
    """
    where: dict[str, Any] = {"timeout": timeout}
    if meeting is not None:
        where |= meeting._asdict()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        set_process_defaults()
        dist.init_process_group("nccl", device_id=device, **where)
    elif meeting is not None and not connected and host_key():
        dist.init_process_group(UNCONNECTED, **where)
    else:
        dist.init_process_group("gloo", **where)
