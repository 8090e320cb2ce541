"""Where plans come from: a schedule that has one for any number of micro-batches, or the caller."""

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Protocol

import schedcc
from schedcc.derive.forwards import placement_of
from schedcc.derive.repetition import Repetition
from schedcc.endless import EndlessPlan, endless_programs
from schedcc.schedules import SCHEDULES, Schedule, find_schedule
from schedcc.schedules.epilogue import epilogues
from schedcc.schedules.schedule import Overlap, first_allowed
from schemas import GroupStart, PipelinePlan, TransportModel
from schemas.plans import in_circle

CHUNK = 256
"""Micro-batches between two drains of the pipe, where a plan cannot go on without an end."""

SMALL = 1024
"""Forwards of a plan that the next evaluator of a process finds compiled."""

_remembered: Callable[..., PipelinePlan] = lru_cache(maxsize=32)(schedcc.compile_pipeline)


class PlanSource(Protocol):
    """Gives plans for the stages and ranks of one pipeline."""

    @property
    def placement(self) -> Sequence[int]:
        """The rank of each stage."""

    @property
    def micro_batches(self) -> int:
        """Of a run, if more are to be evaluated than one run takes."""

    @property
    def fetches_all(self) -> bool:
        """Whether all micro-batches of a run have to be fetched before it."""

    def misfit(self, micro_batches: int) -> str | None:
        """Why there is no plan for one run of so many micro-batches, and what fits."""

    def plan(self, micro_batches: int, outcome: schedcc.Outcome, *, overlap: bool) -> PipelinePlan:
        """The plan of a run; it has passed all checks."""

    @property
    def is_endless(self) -> bool:
        """Whether there are plans for any number of micro-batches."""

    def endless_plan(self, outcome: schedcc.Outcome, *, overlap: bool) -> EndlessPlan:
        """A plan for any number of micro-batches, where there are such."""


class ScheduledPlans:
    """Plans that are compiled from a schedule."""

    micro_batches = CHUNK
    fetches_all = False

    def __init__(self, schedule: str | Schedule, stages: int, ranks: int) -> None:
        """Compile `schedule` for S stages on R ranks.

        Raises:
            ScheduleError: the schedule does not exist for so many stages and ranks.
        """
        self._schedule, self._stages, self._ranks = find_schedule(schedule), stages, ranks
        self.placement = placement_of(self._schedule, stages, ranks)
        self._found: dict[Overlap, Repetition | None] = {}

    def misfit(self, micro_batches: int) -> str | None:  # noqa: ARG002
        """There is one for any number."""
        return None

    def plan(self, micro_batches: int, outcome: schedcc.Outcome, *, overlap: bool) -> PipelinePlan:
        """Compile a plan, see `PlanSource`."""
        if not micro_batches:
            return schedcc.compile_epilogue(
                self._stages, schedule=self._schedule, ranks=self._ranks, outcome=outcome
            )
        small = _ships(self._schedule) and micro_batches * self._stages <= SMALL
        compiled = _remembered if small else schedcc.compile_pipeline
        return compiled(
            micro_batches,
            self._stages,
            schedule=self._schedule.name if small else self._schedule,
            ranks=self._ranks,
            overlap=self._variants[overlap],
            outcome=outcome,
        )

    @cached_property
    def is_endless(self) -> bool:
        """Whether the schedule repeats, in both variants."""
        return all(self._repeated(variant) is not None for variant in self._variants)

    def endless_plan(self, outcome: schedcc.Outcome, *, overlap: bool) -> EndlessPlan:
        """A plan without an end."""
        variant = self._variants[overlap]
        programs = self._repeated(variant)
        assert programs is not None
        return EndlessPlan(programs, outcome, overlap=variant)

    @cached_property
    def _variants(self) -> tuple[Overlap, Overlap]:
        """The blocking variant, and the overlapped one.

        Where channels lead around in a circle, each has a queue (`Transport.separate_channels`), so
        posts may be early; unless only the other variant is proved for any number of micro-batches.
        """
        if not in_circle(self.placement):
            return False, True
        in_order = self._repeated("channel") is None and self._repeated(True) is not None
        return False, True if in_order else "channel"

    def _repeated(self, overlap: Overlap) -> Repetition | None:
        """Of one variant, derived and proved once."""
        if overlap not in self._found:
            self._found[overlap] = endless_programs(
                self._schedule, self._stages, self._ranks, overlap=overlap
            )
        return self._found[overlap]


_BY_CHANNEL = TransportModel(queue="channel")


class GivenPlan:
    """One plan from anywhere, which is run as it is, with the epilogue that a call asks for."""

    is_endless = False

    def __init__(self, plan: PipelinePlan) -> None:
        """Run `plan`.

        Where its channels lead around in a circle, each has a queue of its own (see
        `Transport.separate_channels`), and so it is checked.

        Raises:
            UnsoundPlanError: it is not sound; the message lists its findings.
        """
        self._transport = _BY_CHANNEL if in_circle(plan.placement) else TransportModel()
        self._plan = schedcc.require_sound(plan, self._transport)
        self.placement = plan.placement
        self.micro_batches = plan.micro_batches
        self.fetches_all = any(
            isinstance(placed.instruction, GroupStart)
            for program in plan.programs
            for placed in program.placed()
        )

    def misfit(self, micro_batches: int) -> str | None:
        """It does for as many micro-batches as it has, and for fewer."""
        if micro_batches <= self.micro_batches:
            return None
        return (
            f"num_micro_batches is {micro_batches}, but the plan is for {self.micro_batches}: "
            f"needed at most {self.micro_batches}, or evaluate(loader), which runs it as often as "
            "the data asks"
        )

    def plan(
        self,
        micro_batches: int,  # noqa: ARG002 - it is cut where the data ends
        outcome: schedcc.Outcome,
        *,
        overlap: bool,  # noqa: ARG002 - the plan's own
    ) -> PipelinePlan:
        """The plan with another epilogue; what is left out of it leaves it sound."""
        own = self._plan
        after = epilogues(self.placement, outcome)
        programs = tuple(
            program.model_copy(update={"epilogue": after[program.rank]}) for program in own.programs
        )
        delivering = own.model_copy(update={"programs": programs})
        return schedcc.require_sound(delivering, self._transport)

    def endless_plan(self, outcome: schedcc.Outcome, *, overlap: bool) -> EndlessPlan:
        """A plan that is given has an end, see `is_endless`."""
        raise NotImplementedError


def plan_source(
    schedule: str | Schedule, plan: PipelinePlan | None, stages: int | None, ranks: int
) -> PlanSource:
    """Where the plans of an evaluator come from.

    Args:
        schedule: Its schedule.
        plan: Its plan, in place of a schedule.
        stages: S; default: see `default_stages`.
        ranks: R.

    Raises:
        ScheduleError: the schedule does not exist for so many stages and ranks.
        UnsoundPlanError: the plan is not sound.
    """
    if plan is None:
        value = find_schedule(schedule)
        stages = default_stages(value, ranks) if stages is None else stages
        if _ships(value):
            return _shared(value.name, stages, ranks)
        return ScheduledPlans(value, stages, ranks)
    if stages not in (None, plan.stages):
        raise schedcc.ScheduleError(f"stages is {stages}, but the plan is for {plan.stages}")
    if ranks != plan.ranks:
        raise schedcc.ScheduleError(f"the plan is for {plan.ranks} ranks, but there are {ranks}")
    return GivenPlan(plan)


@lru_cache(maxsize=16)
def _shared(schedule: str, stages: int, ranks: int) -> ScheduledPlans:
    """The variants without an end are derived and proved once for all evaluators of a process."""
    return ScheduledPlans(schedule, stages, ranks)


def _ships(schedule: Schedule) -> bool:
    """Whether nobody can change what a schedule says, as that of a user's own value."""
    return any(schedule is known for known in SCHEDULES)


def default_stages(schedule: Schedule, ranks: int) -> int:
    """Two stages on each rank, if the schedule allows it, else one, else the fewest that it needs.

    Raises:
        ScheduleError: what it says to two, if it allows no number up to eight.
    """
    return first_allowed(schedule, ranks, (2, 1, *range(3, 9)))
