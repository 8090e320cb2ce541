"""The route of a stream: along which hand-overs ranks learn which micro-batches there are.

The rank of the first stage fetches. A rank learns of micro-batches with the activations of the
first of its stages, and tells a rank for which its next stage is the first one::

    stages          0    1    2    3    4    5      interleaved: 3 ranks with 2 stages each
    ranks           0    1    2    0    1    2
    is told by         0    1    -    -    -
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Route:
    """What one rank has to do with the stream."""

    rank: int
    stages: frozenset[int]
    """The stages that the rank holds."""
    last: int
    """The last stage of the pipeline."""
    told_at: int | None
    """The stage before whose activations the rank is told; `None`: it fetches by itself."""
    tells_at: frozenset[int]
    """The stages with whose outputs the rank tells another one."""

    @classmethod
    def of(cls, placement: Sequence[int], rank: int) -> Self:
        """The route of a rank, where stage `s` is on rank `placement[s]`.

        >>> Route.of([0, 1, 2, 0, 1, 2], rank=1)
        Route(rank=1, stages=frozenset({1, 4}), last=5, told_at=1, tells_at=frozenset({1}))
        """
        first = {holder: stage for stage, holder in reversed(list(enumerate(placement)))}
        tells = frozenset(
            stage
            for stage, holder in enumerate(placement[:-1])
            if holder == rank != placement[stage + 1] and first[placement[stage + 1]] == stage + 1
        )
        stages = frozenset(stage for stage, holder in enumerate(placement) if holder == rank)
        return cls(rank, stages, len(placement) - 1, first[rank] or None, tells)

    @property
    def reads_inputs(self) -> bool:
        """Whether the rank holds the first stage."""
        return 0 in self.stages

    @property
    def reads_labels(self) -> bool:
        """Whether the rank holds the last stage."""
        return self.last in self.stages

    @property
    def receiving_stages(self) -> int:
        """How many of the rank's stages have their inputs from another rank."""
        return sum(stage > 0 and stage - 1 not in self.stages for stage in self.stages)
