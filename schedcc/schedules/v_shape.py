"""The V-shaped schedule: there and back, so that the first and the last stage are on one rank.

Rank `r` of R holds the stages `r` and `2 R - 1 - r`. What enters on rank 0 comes out there: inputs,
labels, losses and logits meet without a message. R = 2, M = 3, each forward with stage and
micro-batch::

    step     0     1     2     3     4     5     6     7
    rank 0   0:0         0:1   3:0   0:2   3:1         3:2
    rank 1         1:0   2:0   1:1   2:1   1:2   2:2

A micro-batch enters every second step, so the two directions of a rank never meet; on the last rank
one stage follows the other. It takes `2 M + 2 R - 2` steps, of half a rank's forward each: no
schedule of this placement can be shorter, since the last rank begins after R - 1 of them, has 2 M
of its own, and R - 1 more come behind it.
"""

from dataclasses import dataclass

from schedcc.schedules.grid import Numbers, grid
from schedcc.schedules.schedule import Period, require_stages


@dataclass(frozen=True)
class VShape:
    """Two stages on each rank, one on the way there and one on the way back."""

    name: str = "v_shape"

    def placement(self, stages: int, ranks: int) -> list[int]:
        """Stages `r` and `2 R - 1 - r` are on rank `r`."""
        require_stages(self.name, stages, ranks, each=2)
        return [*range(ranks), *reversed(range(ranks))]

    def enters(self, micro_batch: Numbers, stages: int, ranks: int) -> Numbers:  # noqa: ARG002
        """Micro-batch `m` enters at step `2 m`."""
        return 2 * micro_batch

    def forwards(self, micro_batches: int, stages: int, ranks: int) -> Numbers:
        """A micro-batch is on the next stage in the next step."""
        return grid(self.enters, micro_batches, stages, ranks)

    def period(self, stages: int, ranks: int) -> Period:  # noqa: ARG002
        """Every micro-batch is two steps behind the one before."""
        return Period(micro_batches=1, steps=2)
