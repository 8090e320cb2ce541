"""All contenders in the same processes, in turn: a busy machine is fair to them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.contenders.loops import BlockingLoop, PrefetchingLoop
from benchmarks.contenders.own import Own
from benchmarks.contenders.peers import GPipe, ScheduleRuntime
from benchmarks.report.results import ONE_PROCESS, OWN_AUTO, OWN_BLOCKING, OWN_GLOO, OWN_OVERLAPPED
from benchmarks.settings import Setting
from benchmarks.workload import Evaluated, Workload
from runtime.distributed.process_group import process_group

Contender = Callable[..., Evaluated | None]
"""`(*, keep_logits) -> Evaluated` on the last stage."""


@dataclass(frozen=True)
class Job:
    """What the processes of a measurement are to do."""

    setting: Setting
    layers_per_stage: int
    repeats: int


class WrongResultError(AssertionError):
    """A contender does not give what one process gives."""


def measure(job: Job) -> dict[str, list[float]]:
    """Seconds of every contender, by name; the repeats of all contenders are interleaved."""
    torch.set_num_threads(1)
    with process_group(), torch.no_grad():
        workload = Workload.of(job.setting, job.layers_per_stage)
        contenders: dict[str, Contender] = {
            ONE_PROCESS: lambda **options: _on_rank_0(workload, **options),
            "loop, blocking": BlockingLoop(workload),
            "loop, prefetching": PrefetchingLoop(workload),
            "torch GPipe.eval": GPipe(workload),
            "torch schedule runtime": ScheduleRuntime(workload),
            OWN_BLOCKING: Own(workload, overlap=False),
            OWN_OVERLAPPED: Own(workload, overlap=True),
            OWN_AUTO: Own(workload, overlap="auto"),
            OWN_GLOO: Own(workload, overlap=True, channels="shared"),
        }
        _verify(workload, contenders)
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(job.repeats):
            for name, contender in contenders.items():
                seconds[name].append(_seconds(contender))
        return seconds


def _seconds(contender: Contender) -> float:
    """From when the first process starts to when the last one ends: all read the same clock."""
    dist.barrier()
    start = time.perf_counter()
    contender()
    end = time.perf_counter()
    spans: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(spans, (start, end))
    return float(max(end for _, end in spans) - min(start for start, _ in spans))


def _on_rank_0(workload: Workload, **options: bool) -> Evaluated | None:
    return (
        workload.one_process(**({"keep_logits": False} | options)) if not dist.get_rank() else None
    )


def _verify(workload: Workload, contenders: dict[str, Contender]) -> None:
    """Every contender gives the losses and, bit for bit, the logits of one process.

    Raises:
        WrongResultError: one does not.
    """
    last = dist.get_rank() == dist.get_world_size() - 1
    expected = workload.one_process(keep_logits=True) if last else None
    dist.barrier()
    for name, contender in contenders.items():
        found = contender(keep_logits=True)
        if expected is not None and name != ONE_PROCESS:
            require_same(name, found, expected)
        contender()  # once as it will be timed, so that nothing is done for the first time then
        dist.barrier()


def require_same(name: str, found: Evaluated | None, expected: Evaluated) -> None:
    """Compare an evaluation with that of one process.

    Raises:
        WrongResultError: losses or logits differ.
    """
    if found is None or found.losses != expected.losses:
        raise WrongResultError(f"{name}: other losses than one process")
    assert found.logits is not None
    assert expected.logits is not None
    for micro_batch, (mine, its) in enumerate(zip(found.logits, expected.logits, strict=True)):
        if not torch.equal(mine, its):
            raise WrongResultError(f"{name}: other logits than one process, {micro_batch}")
