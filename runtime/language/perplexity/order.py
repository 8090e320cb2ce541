"""The order of a job: by which schedule, or by which plan, over how many ranks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import schedcc
from runtime.planning.sources import PlanSource, default_stages, plan_source
from schedcc.errors import require_count
from schedcc.io.plain_text import visible
from schedcc.io.plan_files import read_plan
from schedcc.schedules import find_schedule
from schemas import Phase, PipelinePlan, TransferInstruction

Variant = Literal["blocking", "overlapped"]
DEFAULT_SCHEDULE, DEFAULT_STAGES = "inference", 2


@dataclass(frozen=True)
class Order:
    """A schedule for S stages on R ranks, or one plan, which has passed all checks."""

    schedule: str
    stages: int
    ranks: int
    placement: tuple[int, ...]
    plan: PipelinePlan | None = None

    def __str__(self) -> str:
        ranks = f"{self.ranks} process{'es'[: 2 * (self.ranks != 1)]}"
        each = "one for each stage" if self.ranks == self.stages else f"for {self.stages} stages"
        return ranks if self.stages == 1 else f"{ranks}, {each}"

    def variant(self, *, overlap: bool) -> Variant:
        """What is executed, where an evaluator is told to `overlap`."""
        if self.plan is not None:
            placed = (each for program in self.plan.programs for each in program.placed())
            overlap = any(
                each.instruction.effects.phase is Phase.POST
                for each in placed
                if isinstance(each.instruction, TransferInstruction)
            )
        return "overlapped" if overlap else "blocking"

    @property
    def first_rank(self) -> int:
        """The rank that reads inputs."""
        return self.placement[0]

    @property
    def last_rank(self) -> int:
        """The rank that reads labels and has the logits."""
        return self.placement[-1]


def order_of(
    schedule: str | None, plan: Path | None, stages: int | None, ranks: int | None, launched: int
) -> Order:
    """What the options of a command line mean together.

    Args:
        schedule: A name.
        plan: A file in place of it: JSON, or a CSV file of torch's.
        stages: S; default: two, or with `ranks` see `default_stages`.
        ranks: R; default: one for each stage.
        launched: The processes that a launcher has started; 0: none.

    Raises:
        ScheduleError: the numbers do not go together.
        PlanFileError: the file holds no plan.
        UnsoundPlanError: the plan is not sound; the message lists its findings.
    """
    if plan is not None:
        return _planned(plan, schedule, stages, ranks)
    value = find_schedule(schedule or DEFAULT_SCHEDULE)
    if ranks is None and value.name != DEFAULT_SCHEDULE and launched:
        ranks = launched
    if stages is None:
        stages = DEFAULT_STAGES if ranks is None else default_stages(value, ranks)
    require_count("stages", stages)
    ranks = stages if ranks is None else require_count("ranks", ranks)
    return _order(value.name, plan_source(value, None, stages, ranks), ranks)


def _planned(file: Path, schedule: str | None, stages: int | None, ranks: int | None) -> Order:
    if schedule is not None:
        raise schedcc.ScheduleError(
            f"schedule is {schedule!r} and plan {visible(file)}, needed one of them"
        )
    found = read_plan(file)
    if not isinstance(found, PipelinePlan):
        raise schedcc.ScheduleError(
            f"{visible(file)}: the plan of {found.unit} {found.rank} alone, needed all "
            f"{found.unit}s"
        )
    source = plan_source(found.schedule, found, stages, found.ranks if ranks is None else ranks)
    return _order(found.schedule, source, found.ranks, found)


def _order(name: str, source: PlanSource, ranks: int, plan: PipelinePlan | None = None) -> Order:
    return Order(name, len(source.placement), ranks, tuple(source.placement), plan)
