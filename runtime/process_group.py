"""The process group of a pipeline whose processes a launcher has started."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from runtime.device import local_device
from runtime.transport.nccl import LAUNCH_ORDER
from runtime.transport.protocol import TransportError

TIMEOUT = timedelta(minutes=5)
"""How long a transfer may wait for its counterpart."""

SYMPTOM_DELAY = 1.0
"""Seconds before a lost connection is raised: mostly it is a symptom of another process's error,
which the launcher should see first."""


def launched() -> bool:
    """Whether a launcher (torchrun) started this process, as one rank of a run."""
    return dist.is_torchelastic_launched() or {"RANK", "WORLD_SIZE"} <= os.environ.keys()


@contextmanager
def process_group(timeout: timedelta = TIMEOUT) -> Iterator[torch.device]:
    """Join the default process group of a launched run, and leave it afterwards.

    NCCL where every process of this machine has a GPU, gloo elsewhere. NCCL is initialised
    eagerly, on the process's own device: point-to-point transfers, grouped or not, then share the
    group's one communicator.

    Yields:
        The device of this process.

    Raises:
        DeviceError: the machine has GPUs, but fewer than processes.
    """
    device = local_device(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
        os.environ.setdefault(LAUNCH_ORDER, "1")
        dist.init_process_group("nccl", timeout=timeout, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=timeout)
    try:
        yield device
    except TransportError:
        time.sleep(SYMPTOM_DELAY)
        raise
    dist.destroy_process_group()  # after an error, leaving would only tell the others too early
