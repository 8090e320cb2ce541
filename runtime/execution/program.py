"""Programs as the interpreter executes them: with an end, or made while they are executed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

from schemas import Placed, StagePlan


@dataclass(frozen=True)
class Program:
    """What one rank executes."""

    rank: int
    unit: str
    """What messages call who executes it: a stage, or a rank that holds several."""
    placement: tuple[int, ...]
    """The rank of each stage."""
    num_buffers: int
    """Of each stage."""
    steps: Callable[[], Iterable[Placed]]
    """The instructions of the steps, in order."""
    epilogue: tuple[Placed, ...]
    instructions_of_a_micro_batch: int | None = None
    """Of a program without an end: once so many are executed for each, it is over."""
    plan: StagePlan | None = None
    """Of a program that has an end."""

    @classmethod
    def of(cls, plan: StagePlan) -> Self:
        """The program of a plan."""
        placed = list(plan.program.placed())
        steps = [p for p in placed if p.step is not None]
        return cls(
            plan.rank,
            plan.unit,
            plan.placement,
            plan.num_buffers,
            lambda: steps,
            tuple(p for p in placed if p.step is None),
            plan=plan,
        )
