"""What has to be so before NCCL is used, checked; and what makes it unusable."""

import os

import torch
import torch.distributed as dist

from runtime.transport.protocol import TransportError
from runtime.transport.torch_distributed.groups.nccl_settings import LAUNCH_ORDER


def require_launch_order() -> None:
    """Make sure that several communicators on one device cannot wait for each other.

    Raises:
        TransportError: the environment does not say so.
    """
    if os.environ.get(LAUNCH_ORDER) != "1":
        raise TransportError(
            f"channels is 'per-edge' and {LAUNCH_ORDER} is {os.environ.get(LAUNCH_ORDER)!r}, "
            "needed '1' in the environment before init_process_group"
        )


def require_eager(group: dist.ProcessGroup) -> torch.device:
    """The device to which an NCCL group was bound when it was initialised.

    Raises:
        TransportError: it was initialised lazily. Single and grouped transfers would then use
            different communicators and never match.
    """
    device: torch.device | None = group.bound_device_id
    if device is None:
        raise TransportError(
            "the NCCL process group was initialised without device_id, needed "
            "init_process_group(..., device_id=torch.device('cuda', local_rank))"
        )
    return device


def device_of_nccl(world: dist.ProcessGroup, device: torch.device | None) -> torch.device:
    """The GPU of this process, on which NCCL was initialised.

    Args:
        world: The default process group.
        device: What the caller wants; without an index, or `None`, it is the GPU of `world`.

    Raises:
        TransportError: NCCL was initialised lazily, or for another GPU.
    """
    bound = require_eager(world)
    if device is not None and device.index not in (None, bound.index):
        raise TransportError(f"device is {device}, but NCCL was initialised for {bound}")
    return bound


_unsound: str = ""
"""Why NCCL cannot be used in this process any more."""


def refuse_from_here(error: BaseException) -> None:
    """Note an error between `ncclGroupStart` and the end of `ncclGroupEnd`.

    Both NCCL and torch count open groups by thread, and nothing sets the counters back: what the
    thread posts afterwards would never be launched (read, not run: see docs/explanation/gpu.md).
    """
    global _unsound
    _unsound = f"{type(error).__name__}: {error}"


def require_sound() -> None:
    """Refuse to go on after an error within a group of transfers.

    Raises:
        TransportError: there was one.
    """
    if _unsound:
        raise TransportError(
            f"NCCL cannot be used in this process after an error within a group of transfers "
            f"({_unsound}): start all processes again"
        )
