"""Backends of process groups: which one a group has for a device, and new groups of each.

The groups are made as `torch.distributed._dist2` makes them, not by `new_group`, which would need
every process of the world, those of other pipelines too.
"""

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store

from runtime.transport.protocol import TransportError
from runtime.transport.torch_distributed.groups.nccl_settings import NcclSettings, without_watchdog
from runtime.transport.torch_distributed.groups.torch_version import require_torch

require_torch()

KINDS = ("gloo", "nccl")
"""Backends whose groups can be made here."""

CONNECT_TIMEOUT = timedelta(seconds=60)
"""The guard opens a group when all ranks are there."""

UNCONNECTED = "shared_memory"
"""The backend of ranks that only local channels connect; see `UnconnectedGroup`."""

UNGUARDED_TIMEOUT = timedelta(minutes=30)
"""How long a wait may take in a group that no guard has opened; the default of gloo."""

LONGEST_TIMEOUT = timedelta(days=24)
"""More milliseconds do not fit where some of them end up."""


class UnconnectedGroup(dist.ProcessGroup):
    """The ranks of a run on one host, as `torch.distributed` counts them.

    No operation goes through it, so no port is open: gloo would listen on one, where it takes
    whoever connects first for a rank.
    """


def _unconnected(_store: Store, rank: int, size: int, _timeout: timedelta) -> dist.ProcessGroup:
    return UnconnectedGroup(rank, size)  # type: ignore[call-arg]


dist.Backend.register_backend(UNCONNECTED, _unconnected, devices=["cpu"])


def bounded(seconds: float) -> timedelta:
    """A timeout that every backend can hold.

    >>> bounded(90), bounded(float("inf"))
    (datetime.timedelta(seconds=90), datetime.timedelta(days=24))
    """
    return timedelta(seconds=min(seconds, LONGEST_TIMEOUT.total_seconds()))


def backend_of(group: dist.ProcessGroup, device: torch.device) -> str:
    """The name of the backend that moves a group's tensors on `device`; empty: there is none.

    The name with which a group was initialised may be one for several devices
    (`"cpu:gloo,cuda:nccl"`), or none.
    """
    try:
        return str(group._get_backend(device).name())
    except RuntimeError:  # none for this device; or one of a user's own, which is one for all
        named = str(dist.get_backend(group))
        return "" if named in (*KINDS, "undefined") or ":" in named else named


def require_backend(group: dist.ProcessGroup, device: torch.device) -> str:
    """The name of the backend that moves tensors on `device`.

    Raises:
        TransportError: there is none, or gloo would have to move the tensors of a GPU.
    """
    backend = backend_of(group, device)
    if not backend:
        raise TransportError(f"the process group has no backend for {device}, needed one")
    if backend == "gloo" and device.type != "cpu":
        raise TransportError(
            f"the process group's backend for {device} is gloo, which moves tensors of the CPU "
            "here: needed NCCL (init_process_group('nccl', device_id=...)), or "
            "device=torch.device('cpu')"
        )
    return backend


def default_device(group: dist.ProcessGroup) -> torch.device:
    """The kind of device that a group is for: a GPU if it has NCCL and there is one, else a CPU."""
    gpu = torch.device("cuda")
    on_gpu = torch.cuda.is_available() and backend_of(group, gpu) == "nccl"
    return gpu if on_gpu else torch.device("cpu")


@dataclass(frozen=True)
class Timeouts:
    """How long things may take in a group."""

    connect: timedelta = UNGUARDED_TIMEOUT
    wait: timedelta = UNGUARDED_TIMEOUT


def new_group(
    kind: str,
    store: Store,
    rank: int,
    size: int,
    device: torch.device,
    timeouts: Timeouts,
    settings: NcclSettings,
) -> dist.ProcessGroup:
    """A process group over ranks that all make it at the same time.

    Args:
        kind: One of `KINDS`.
        store: Where they find each other.
        rank: This one of them.
        size: Their number.
        device: Where tensors will be.
        timeouts: NCCL knows only that of a wait, and waits no longer than that for an abort.
        settings: Of NCCL.
    """
    group = dist.ProcessGroup(store, rank, size)
    if kind == "gloo":
        gloo = dist.ProcessGroupGloo(store, rank, size, timeouts.connect)
        gloo._set_default_timeout(timeouts.wait)
        group._set_default_backend(dist.ProcessGroup.BackendType.GLOO)
        group._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, gloo)
        return group
    options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=settings.high_priority)
    options._timeout = timeouts.wait
    if settings.max_ctas is not None:
        options.config.max_ctas = settings.max_ctas
    if settings.nonblocking:
        options.config.blocking = 0
    with without_watchdog():
        nccl = dist.ProcessGroupNCCL(store, rank, size, options)
    nccl._set_sequence_number_for_group()
    nccl.eager_connect_single_device(device)
    group._set_default_backend(dist.ProcessGroup.BackendType.NCCL)
    group._register_backend(device, dist.ProcessGroup.BackendType.NCCL, nccl)
    return group
