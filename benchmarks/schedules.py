"""Schedules side by side: stages as emulated devices, several on a rank, over emulated links.

Each contender has the same ranks and the same work: a rank's forwards take the same time in all,
whether it holds one stage or two. torch's engine runs in the same threads over the same links.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import schedcc
from benchmarks.links import predicted
from benchmarks.own import Own
from benchmarks.processes import require_same
from benchmarks.results import INFERENCE, ONE_PROCESS, TORCH_INTERLEAVED, WIDE
from benchmarks.settings import Setting
from benchmarks.threaded_torch import Interleaved, over_emulated_links
from benchmarks.workload import Evaluated, Workload, seconds_of
from runtime.testing import InMemoryTransport, Link, run_stages
from schedcc.schedules.schedule import Overlap
from schemas import PipelinePlan


class Placed(NamedTuple):
    """A schedule, and how many stages it puts on each rank."""

    schedule: str
    held: int
    overlap: Overlap

    @property
    def name(self) -> str:
        """What tables call it."""
        variant = {False: "blocking", True: "overlapped", "channel": "overlapped by channel"}
        return f"{self.schedule}, {variant[self.overlap]}"

    def plan(self, setting: Setting) -> PipelinePlan:
        """Its plan for the ranks of a setting."""
        return schedcc.compile_pipeline(
            setting.micro_batches,
            self.held * setting.stages,
            schedule=self.schedule,
            ranks=setting.stages,
            overlap=self.overlap,
        )


PLACED = (
    Placed("inference", 1, overlap=True),
    Placed("interleaved", 2, overlap=False),
    Placed("interleaved", 2, overlap=True),
    Placed("interleaved", 2, overlap="channel"),
    Placed("interleaved_wide", 2, overlap="channel"),
    Placed("v_shape", 2, overlap=True),
)


def measure_schedules(setting: Setting, repeats: int) -> dict[str, list[float]]:
    """Seconds of one process and of all contenders, by name; the repeats are interleaved."""
    workloads = {held: Workload.of(setting.divided(held), 1) for held in (1, 2)}
    expected = {held: work.one_process(keep_logits=True) for held, work in workloads.items()}

    def rank(end: InMemoryTransport) -> dict[str, list[float]]:
        contenders: dict[str, tuple[int, Callable[..., Evaluated | None]]] = {
            placed.name: (
                placed.held,
                Own(workloads[placed.held], bool(placed.overlap), end, plan=placed.plan(setting)),
            )
            for placed in PLACED
        }
        contenders[TORCH_INTERLEAVED] = (2, Interleaved(workloads[2], end))
        for name, (held, contender) in contenders.items():
            found = contender(keep_logits=True)
            if found is not None:
                require_same(name, found, expected[held])
            contender()  # once as it will be timed
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(repeats):
            for name, (_, contender) in contenders.items():
                seconds[name].append(_seconds(end, contender))
        return seconds

    assert {INFERENCE, WIDE} <= {placed.name for placed in PLACED}
    with over_emulated_links(setting.stages):
        timings = run_stages(
            setting.stages,
            rank,
            queue="channel",
            link=Link(seconds=setting.transfer_seconds),
            timeout=600.0,
        )[0]
    one_process = seconds_of(lambda: workloads[1].one_process(keep_logits=False))
    return {ONE_PROCESS: [one_process], **timings}


def predict_schedules(setting: Setting, rank_seconds: float) -> dict[str, float]:
    """Seconds that the compiler's simulation gives each schedule.

    Args:
        setting: Ranks, micro-batches and the seconds of a transfer.
        rank_seconds: What all forwards of a rank take for a micro-batch.
    """
    return {
        placed.name: predicted(placed.plan(setting), rank_seconds / placed.held, setting)
        for placed in PLACED
    }


def _seconds(end: InMemoryTransport, contender: Callable[[], Evaluated | None]) -> float:
    end.gather_objects(None)
    start = time.perf_counter()
    contender()
    spans = end.gather_objects((start, time.perf_counter()))
    return float(max(end for _, end in spans) - min(start for start, _ in spans))
