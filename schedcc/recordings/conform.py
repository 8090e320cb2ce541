"""Conformance: did a recorded run follow a plan?

Two questions. *Sequence*: did every rank execute the instructions of its program, all of them,
in their order? *Order*: did nothing happen before what the plan makes it wait for (see
`schedcc.recordings.order`)?
"""

from collections.abc import Iterator

from schedcc.analysis.graph import one_program_a_rank
from schedcc.recordings.order import Causality
from schedcc.recordings.recording import PipelineId, Recording
from schedcc.recordings.sequence import Planned, compared
from schedcc.recordings.timed import numbers_of_runs
from schedcc.table.table import PlanTable
from schemas import PipelinePlan
from schemas.reports.conformance import Conformance, Deviation

CLOCK_ERROR = 0.5
"""Seconds by which the times of day of two machines may differ, by default; NTP does better."""

Observation = Deviation | str
"""What is not allowed, or a note on what limits the comparison."""


def conform(
    plan: PipelinePlan | PlanTable | None,
    recording: Recording,
    *,
    run: int | None = None,
    clock_error: float = CLOCK_ERROR,
) -> Conformance:
    """Compare a recording with a plan.

    A run that was cut short conforms if what there is of it is a prefix of the plan; a note says
    so.

    Args:
        plan: Of all ranks, or of those that are to be compared; or its table. `None`: each run is
            compared with the plan that the recording holds of it.
        recording: Any recording.
        run: Compare this run alone; default: all.
        clock_error: Seconds by which the clocks of different machines may disagree; ranks with one
            clock are compared exactly.

    Raises:
        ValueError: there is no such run, or `clock_error` is no number of seconds.
    """
    runs = numbers_of_runs(recording, run)
    found: dict[Observation, None] = {}  # in order; what holds of several plans is said once
    instructions = 0
    if not runs:
        found[Deviation(code="recording", message="no rank began a run: nothing to compare")] = None
    for table, numbers in _plans(plan, recording, runs):
        if table is None:
            missing = Deviation(
                code="recording", message="no rank recorded the plan", run=numbers[0]
            )
            found[missing] = None
            continue
        found |= dict.fromkeys(_compared(table, recording, numbers, clock_error))
        instructions += sum(
            len(executed.executed)
            for rank in recording.ranks
            for number in numbers
            if rank.pipeline_rank in table.rank_ids and (executed := rank.run(number)) is not None
        )
    return Conformance(
        deviations=tuple(o for o in found if isinstance(o, Deviation)),
        runs=tuple(runs),
        instructions=instructions,
        notes=tuple(o for o in found if isinstance(o, str)),
    )


def _plans(
    plan: PipelinePlan | PlanTable | None, recording: Recording, runs: list[int]
) -> Iterator[tuple[PlanTable | None, list[int]]]:
    """What to compare with, and the runs that are compared with it."""
    if plan is not None:
        yield plan if isinstance(plan, PlanTable) else one_program_a_rank(plan), runs
        return
    alike: dict[tuple[str | None, ...], list[int]] = {}
    for number in runs:
        begun = (rank.run(number) for rank in recording.ranks)
        plans = tuple(None if found is None else found.fingerprint for found in begun)
        alike.setdefault(plans, []).append(number)
    for numbers in alike.values():
        tables = (recording.plan_table(each, numbers[0]) for each in recording.pipelines)
        yield next((table for table in tables if table is not None), None), numbers


def _compared(
    table: PlanTable, recording: Recording, runs: list[int], clock_error: float
) -> Iterator[Observation]:
    """What is said of some runs, compared with one plan."""
    yield from _files(table, recording)
    programs = {rank: Planned.of(table, rank) for rank in table.rank_ids.tolist()}
    followed = set()
    for pipeline, by_rank in recording.pipelines.items():
        for rank in by_rank.values():
            for number in runs if rank.pipeline_rank in programs else ():
                count = recording.micro_batches(pipeline, number)
                observed = list(compared(rank, number, programs[rank.pipeline_rank], count))
                yield from observed
                if not any(isinstance(o, Deviation) for o in observed):
                    followed.add((rank.header.rank, number))
    causality = Causality(table, recording, clock_error)
    yield from causality.limits()
    for pipeline, by_rank in recording.pipelines.items():
        ranks = [rank for number, rank in by_rank.items() if number in programs]
        for number in runs:
            yield from _end_of_data(recording, pipeline, number, table)
            if all((rank.header.rank, number) in followed for rank in ranks):
                yield from causality.contradictions(pipeline, number)


def _files(plan: PlanTable, recording: Recording) -> Iterator[Observation]:
    """A recording with holes proves nothing; one that breaks off at its end is only short."""
    for damage in recording.damages:
        breaks_off = any(rank.cut and rank.damages[-1] == damage for rank in recording.ranks)
        yield damage if breaks_off else Deviation(code="recording", message=damage)
    ranks = sorted({rank.header.stages for rank in recording.ranks})
    if ranks != [plan.ranks]:
        found, unit = " and ".join(map(str, ranks)), plan.header.unit
        size = unit[0].upper()
        message = f"recorded with {size} = {found} {unit}s, the plan is for {size} = {plan.ranks}"
        yield Deviation(code="recording", message=message)


def _end_of_data(
    recording: Recording, pipeline: PipelineId, number: int, plan: PlanTable
) -> Iterator[Observation]:
    """Whether the ranks of a pipeline agree on how many micro-batches the data held."""
    known: dict[int, str] = {}  # how many, and the first rank that says so
    for rank in recording.pipelines[pipeline].values():
        run = rank.run(number)
        if run is not None and run.micro_batches is not None:
            known.setdefault(run.micro_batches, rank.name)
        elif run is not None and run.end is not None:
            known.setdefault(plan.micro_batches, rank.name)
    if len(known) > 1:
        named = " and ".join(f"{count} ({rank})" for count, rank in known.items())
        message = f"the ranks of {pipeline} do not agree on how many micro-batches there were"
        yield Deviation(code="sequence", message=f"{message}: {named}", run=number)
    elif known and min(known) < plan.micro_batches:
        yield (
            f"{pipeline}, run {number}: the data ended after {min(known)} of the plan's "
            f"{plan.micro_batches} micro-batches"
        )
