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
from schedcc.table.table import PlanTable
from schemas import PipelinePlan
from schemas.reports.conformance import Conformance, Deviation

CLOCK_ERROR = 0.5
"""Seconds by which the times of day of two machines may differ, by default; NTP does better."""

Observation = Deviation | str
"""What is not allowed, or a note on what limits the comparison."""


def conform(
    plan: PipelinePlan | PlanTable,
    recording: Recording,
    *,
    run: int | None = None,
    clock_error: float = CLOCK_ERROR,
) -> Conformance:
    """Compare a recording with a plan.

    A run that was cut short conforms if what there is of it is a prefix of the plan; a note says
    so.

    Args:
        plan: Of all ranks, or of those that are to be compared; or its table.
        recording: Any recording.
        run: Compare this run alone; default: all.
        clock_error: Seconds by which the clocks of different machines may disagree; ranks with one
            clock are compared exactly.

    Raises:
        ValueError: there is no such run, or `clock_error` is no number of seconds.
    """
    recorded = sorted({r.number for rank in recording.ranks for r in rank.runs})
    if run is not None and run not in recorded:
        known = ", ".join(map(str, recorded)) or "none"
        raise ValueError(f"run is {run}, needed a run of the recording ({known})")
    runs = recorded if run is None else [run]
    table = plan if isinstance(plan, PlanTable) else one_program_a_rank(plan)
    found: list[Observation] = [*_files(table, recording)]
    programs = {rank: Planned.of(table, rank) for rank in table.rank_ids.tolist()}
    followed = set()
    for pipeline, by_rank in recording.pipelines.items():
        for rank in by_rank.values():
            for number in runs if rank.pipeline_rank in programs else ():
                count = recording.micro_batches(pipeline, number)
                observed = list(compared(rank, number, programs[rank.pipeline_rank], count))
                found += observed
                if not any(isinstance(o, Deviation) for o in observed):
                    followed.add((rank.header.rank, number))
    causality = Causality(table, recording, clock_error)
    found += causality.limits()
    for pipeline, by_rank in recording.pipelines.items():
        ranks = [rank for number, rank in by_rank.items() if number in programs]
        for number in runs:
            found += _end_of_data(recording, pipeline, number, table)
            if all((rank.header.rank, number) in followed for rank in ranks):
                found += causality.contradictions(pipeline, number)
    return Conformance(
        deviations=tuple(o for o in found if isinstance(o, Deviation)),
        runs=tuple(runs),
        instructions=sum(
            len(executed.executed)
            for rank in recording.ranks
            for number in runs
            if rank.pipeline_rank in programs and (executed := rank.run(number)) is not None
        ),
        notes=tuple(o for o in found if isinstance(o, str)),
    )


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
    if not any(rank.runs for rank in recording.ranks):
        yield Deviation(code="recording", message="no rank began a run: nothing to compare")


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
