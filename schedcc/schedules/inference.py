"""The inference schedule: GPipe's fill and drain, forward only; M + S - 1 steps, two buffers.

Stage `s` forwards micro-batch `m = t - s` at step `t`. M = 4, S = 3, `F` with its micro-batch::

    step      0    1    2    3    4    5
    stage 0   F0   F1   F2   F3
    stage 1        F0   F1   F2   F3
    stage 2             F0   F1   F2   F3
              fill ----|         |---- drain

What is derived from it is DeepSpeed's `InferenceSchedule`
(https://deepspeed.readthedocs.io/en/latest/pipeline.html), instruction by instruction: even stages
send first and then receive, odd stages receive first, and micro-batch `m` lies in buffer `m % 2`.
"""

from dataclasses import dataclass

from schedcc.schedules.grid import Numbers, grid
from schedcc.schedules.schedule import Period, require_stages


@dataclass(frozen=True)
class Inference:
    """One stage on each rank, one step later than the stage before: fill and drain."""

    name: str = "inference"

    def placement(self, stages: int, ranks: int) -> list[int]:
        """Stage `s` is on rank `s`."""
        require_stages(self.name, stages, ranks, each=1)
        return list(range(stages))

    def enters(self, micro_batch: Numbers, stages: int, ranks: int) -> Numbers:  # noqa: ARG002
        """Micro-batch `m` enters at step `m`."""
        return micro_batch

    def forwards(self, micro_batches: int, stages: int, ranks: int) -> Numbers:
        """A micro-batch is on the next stage in the next step."""
        return grid(self.enters, micro_batches, stages, ranks)

    def period(self, stages: int, ranks: int) -> Period:  # noqa: ARG002
        """Every micro-batch is one step behind the one before."""
        return Period(micro_batches=1, steps=1)
