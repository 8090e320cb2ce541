"""Schedules side by side: stages as emulated devices, several on a rank, over emulated links.

Each contender has the same ranks and the same work: a rank's forwards take the same time in all,
whether it holds one stage or two. torch's engine runs in the same threads over the same links.
"""

from typing import NamedTuple

import schedcc
from benchmarks.contenders.own import Own
from benchmarks.contenders.threaded_torch import Interleaved, over_emulated_links
from benchmarks.links import Contender, predicted, timed_over_links
from benchmarks.report.results import INFERENCE, ONE_PROCESS, TORCH_INTERLEAVED, WIDE
from benchmarks.settings import Setting
from benchmarks.workload import Workload, seconds_of
from runtime.testing import InMemoryTransport
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
    of_one_process = {held: work.one_process(keep_logits=True) for held, work in workloads.items()}
    expected = {placed.name: of_one_process[placed.held] for placed in PLACED}
    expected[TORCH_INTERLEAVED] = of_one_process[2]

    def contenders_of(end: InMemoryTransport) -> dict[str, Contender]:
        contenders: dict[str, Contender] = {
            placed.name: Own(
                workloads[placed.held], bool(placed.overlap), end, plan=placed.plan(setting)
            )
            for placed in PLACED
        }
        return contenders | {TORCH_INTERLEAVED: Interleaved(workloads[2], end)}

    assert {INFERENCE, WIDE} <= {placed.name for placed in PLACED}
    with over_emulated_links(setting.stages):
        timings = timed_over_links(setting, contenders_of, expected, repeats)
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
