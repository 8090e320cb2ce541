"""The division of a model: which layers make up each stage, and which rank holds each stage."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, repr=False)
class Division:
    """Layers divided into stages, and stages placed on the ranks of a pipeline.

    >>> division = Division.of((0, 2, 3, 5, 6), placement=(0, 1, 0, 1))
    >>> division.stages_of(0), division.layers_of(0)
    ((0, 2), (0, 1, 3, 4))
    """

    boundaries: tuple[int, ...]
    """Where each stage begins, and the number of layers, see `runtime.modules.partition`."""
    placement: tuple[int, ...]
    """The rank of each stage."""

    @classmethod
    def of(cls, boundaries: Sequence[int], placement: Sequence[int] | None = None) -> "Division":
        """The division at `boundaries`; by default every rank holds one stage."""
        stages = len(boundaries) - 1
        return cls(tuple(boundaries), tuple(range(stages) if placement is None else placement))

    @property
    def stages(self) -> int:
        """S."""
        return len(self.placement)

    @property
    def ranks(self) -> int:
        """R, the number of ranks."""
        return max(self.placement) + 1

    @property
    def layers(self) -> int:
        """The number of layers."""
        return self.boundaries[-1]

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """The stages on a rank, in their order."""
        return tuple(stage for stage, holder in enumerate(self.placement) if holder == rank)

    def layers_of_stage(self, stage: int) -> range:
        """The layers of a stage, by their index in the model."""
        return range(self.boundaries[stage], self.boundaries[stage + 1])

    def layers_of(self, rank: int) -> tuple[int, ...]:
        """The layers on a rank, by their index in the model."""
        return tuple(i for stage in self.stages_of(rank) for i in self.layers_of_stage(stage))

    def stage_of(self, layer: int) -> int:
        """The stage of a layer."""
        return bisect_right(self.boundaries, layer) - 1

    def rank_of(self, layer: int) -> int:
        """The rank that holds a layer."""
        return self.placement[self.stage_of(layer)]

    @property
    def unit(self) -> str:
        """What messages count: stages, where every rank holds one, or ranks."""
        return "stage" if self.placement == tuple(range(self.stages)) else "rank"

    def name(self, rank: int) -> str:
        """What a rank is called in messages: its stage, where every rank holds one."""
        return f"{self.unit} {rank}"

    @property
    def titles(self) -> tuple[str, ...]:
        """The name of each rank, with the stages that it holds where these are several.

        >>> Division.of((0, 2, 3, 5), placement=(0, 1, 0)).titles
        ('rank 0 (stages 0 and 2)', 'rank 1 (stage 1)')
        """
        return tuple(self._title(rank) for rank in range(self.ranks))

    def _title(self, rank: int) -> str:
        if self.unit == "stage":
            return self.name(rank)
        *others, last = map(str, self.stages_of(rank))
        held = f"stages {', '.join(others)} and {last}" if others else f"stage {last}"
        return f"{self.name(rank)} ({held})"

    def __repr__(self) -> str:
        on = "" if self.unit == "stage" else f" on the ranks {self.placement}"
        return f"{self.boundaries}{on}"
