"""The interleaved schedule: several stages on each rank, so that the pipeline fills in less time.

Rank `r` of R holds the `v` stages `r`, `r + R`, `r + 2 R`, ...; the pipeline passes the ranks `v`
times, in a ring. Micro-batches go by in groups of R: a group takes all its laps, one right after
the other, before the next group enters. R = 2, v = 2, M = 4, each forward with stage and
micro-batch::

    step     0     1     2     3     4     5     6     7     8
    rank 0   0:0   0:1   2:0   2:1   0:2   0:3   2:2   2:3
    rank 1         1:0   1:1   3:0   3:1   1:2   1:3   3:2   3:3

It takes `v M + R - 1` steps, each `1 / v` of a rank's forward, if R divides M: no rank is idle but
at the start and at the end. If not, the last group leaves gaps between its laps,
`(v - 1) (R - M mod R)` steps in all. No micro-batch ever waits, so two buffers are enough; and of
all schedules in which none waits, none is shorter: micro-batches that enter at steps which are
alike modulo R have to follow each other at a distance of `v R`, and so some such class has
`ceil(M / R)` of them one after the other. (Narayanan et al., "Efficient large-scale language model
training on GPU clusters using Megatron-LM", 2021, has the idea for training.)

Where transfers take time, that is too tight: a group comes around the ring after R forwards and R
transfers, and its ranks wait for the transfers in every lap. In `interleaved_wide` groups have 2 R
micro-batches, so a micro-batch waits R steps between two laps, in which its transfer can be under
way. It takes as many steps if 2 R divides M, and 2 R buffers of each stage.
"""

from dataclasses import dataclass

from schedcc.schedules.grid import Numbers, grid
from schedcc.schedules.schedule import Period, require_stages


@dataclass(frozen=True)
class Interleaved:
    """`v` stages on each rank in a ring; groups of micro-batches, depth first."""

    name: str = "interleaved"
    group: int = 1
    """Micro-batches of a group, in multiples of R."""

    def placement(self, stages: int, ranks: int) -> list[int]:
        """Stage `s` is on rank `s mod R`."""
        require_stages(self.name, stages, ranks)
        return [stage % ranks for stage in range(stages)]

    def enters(self, micro_batch: Numbers, stages: int, ranks: int) -> Numbers:
        """Micro-batch `m` of groups of G enters at step `(m div G) v G + m mod G`."""
        size = ranks * self.group
        return micro_batch // size * (stages * self.group) + micro_batch % size

    def forwards(self, micro_batches: int, stages: int, ranks: int) -> Numbers:
        """A micro-batch is on the next rank in the next step, and begins a lap every G steps."""
        found = grid(self.enters, micro_batches, stages, ranks)
        step, stage = found[:, 0], found[:, 1]
        step += stage // ranks * ((self.group - 1) * ranks)
        return found

    def period(self, stages: int, ranks: int) -> Period:
        """A group follows the other after v G steps."""
        return Period(micro_batches=self.group * ranks, steps=self.group * stages)
