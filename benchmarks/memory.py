"""Memory as the number of micro-batches grows: what activations of 1 MiB cost a rank.

Measured as the peak of the resident set over what it was before, after a run with activations of a
few bytes that has everything else in it: plans, libraries, connections. Linux only.
"""

import ctypes
import gc
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.contenders.own import Own
from benchmarks.contenders.peers import GPipe
from benchmarks.report.results import MemoryOf
from benchmarks.settings import Setting
from benchmarks.workload import Evaluated, Workload
from runtime.distributed.process_group import process_group

SETTING = Setting(
    name="memory",
    kind="compute",
    stages=2,
    micro_batches=8,
    rows=1024,
    width=256,
    stage_seconds=1e-3,
)
"""Activations of 1 MiB."""

OWN_MICRO_BATCHES, PEER_MICRO_BATCHES = (8, 1024), (8, 256)


@dataclass(frozen=True)
class MemoryJob:
    """The numbers of micro-batches to measure."""

    own: tuple[int, ...] = OWN_MICRO_BATCHES
    peer: tuple[int, ...] = PEER_MICRO_BATCHES


def measure_memory(job: MemoryJob) -> list[MemoryOf]:
    """The peak of every rank, by engine and number of micro-batches."""
    torch.set_num_threads(1)
    found = []
    with process_group(), torch.no_grad():
        Own(_workload(2, SETTING.rows), overlap=True)()  # libraries, at this size
        for micro_batches in job.own:
            small, large = _workload(micro_batches, 1), _workload(micro_batches, SETTING.rows)
            evaluator = Own(small, overlap=True)
            evaluator()
            # The evaluator itself goes on, so that its plan is not counted as activations.
            found.append(_peak("schedcc, overlapped", micro_batches, evaluator.over(large)))
            del evaluator
        for micro_batches in job.peer:
            GPipe(_workload(micro_batches, 1))()
            engine = GPipe(_workload(micro_batches, SETTING.rows))
            found.append(_peak("torch GPipe.eval", micro_batches, engine))
            del engine
    return found


def _workload(micro_batches: int, rows: int) -> Workload:
    """Inputs of `[rows, 1]`, so that next to nothing of what is measured is the data itself."""
    setting = SETTING.model_copy(update={"micro_batches": micro_batches, "rows": rows})
    torch.manual_seed(0)  # the same on every rank
    layers: list[nn.Module] = [nn.Linear(1, setting.width), nn.Linear(setting.width, setting.width)]
    same = torch.Generator().manual_seed(0)
    pair = (
        torch.randn(rows, 1, generator=same),
        torch.randn(setting.width, generator=same),
    )
    return Workload(setting, layers, [pair] * micro_batches)


def _peak(engine: str, micro_batches: int, call: Callable[[], Evaluated | None]) -> MemoryOf:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free is not to hide what is needed
    dist.barrier()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    call()
    grown = max(0, _status("VmHWM") - before)
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, grown)
    return MemoryOf(engine=engine, micro_batches=micro_batches, peak_bytes=tuple(ranks))


def _status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
