"""Conformance: did a recorded run follow a plan?

Two questions. *Sequence*: did every rank execute the instructions of its stage, all of them, in
their order? *Order*: did nothing happen before what the plan makes it wait for (see
`schedcc.recordings.order`)?
"""

from collections import deque
from collections.abc import Iterator

from schedcc.recordings.order import Causality
from schedcc.recordings.recording import PipelineId, RankRecording, Recording
from schedcc.restrict import exists
from schemas import PipelinePlan, Placed
from schemas.conformance import Conformance, Deviation

CLOCK_ERROR = 0.5
"""Seconds by which the times of day of two machines may differ, by default; NTP does better."""

Observation = Deviation | str
"""What is not allowed, or a note on what limits the comparison."""


def conform(
    plan: PipelinePlan,
    recording: Recording,
    *,
    run: int | None = None,
    clock_error: float = CLOCK_ERROR,
) -> Conformance:
    """Compare a recording with a plan.

    A run that was cut short conforms if what there is of it is a prefix of the plan; a note says
    so.

    Args:
        plan: Of all stages, or of those whose ranks are to be compared.
        recording: Any recording.
        run: Compare this run alone; default: all.
        clock_error: Seconds by which the clocks of different machines may disagree; ranks with one
            clock are compared exactly.

    Raises:
        ValueError: there is no such run.
    """
    recorded = sorted({r.number for rank in recording.ranks for r in rank.runs})
    if run is not None and run not in recorded:
        known = ", ".join(map(str, recorded)) or "none"
        raise ValueError(f"run is {run}, needed a run of the recording ({known})")
    runs = recorded if run is None else [run]
    found: list[Observation] = [*_files(plan, recording)]
    programs = {program.rank: list(program.placed()) for program in plan.programs}
    followed = set()
    for pipeline, by_stage in recording.pipelines.items():
        for rank in by_stage.values():
            for number in runs if rank.header.stage_id in programs else ():
                count = recording.micro_batches(pipeline, number)
                due = programs[rank.header.stage_id]
                observed = list(_sequence(rank, number, plan, due, count))
                found += observed
                if not any(isinstance(o, Deviation) for o in observed):
                    followed.add((rank.header.rank, number))
    causality = Causality(plan, recording, clock_error)
    found += causality.limits()
    for pipeline, by_stage in recording.pipelines.items():
        ranks = [rank for stage, rank in by_stage.items() if stage in programs]
        for number in runs:
            found += _end_of_data(recording, pipeline, number, plan)
            if all((rank.header.rank, number) in followed for rank in ranks):
                found += causality.contradictions(pipeline, number)
    return Conformance(
        deviations=tuple(o for o in found if isinstance(o, Deviation)),
        runs=tuple(runs),
        instructions=sum(
            len(executed.executed)
            for rank in recording.ranks
            for number in runs
            if rank.header.stage_id in programs and (executed := rank.run(number)) is not None
        ),
        notes=tuple(o for o in found if isinstance(o, str)),
    )


def _files(plan: PipelinePlan, recording: Recording) -> Iterator[Observation]:
    """A recording with holes proves nothing; one that breaks off at its end is only short."""
    for damage in recording.damages:
        breaks_off = any(rank.cut and rank.damages[-1] == damage for rank in recording.ranks)
        yield damage if breaks_off else Deviation(code="recording", message=damage)
    stages = sorted({rank.header.stages for rank in recording.ranks})
    if stages != [plan.stages]:
        found = " and ".join(map(str, stages))
        message = f"recorded with S = {found} stages, the plan is for S = {plan.stages}"
        yield Deviation(code="recording", message=message)
    if not any(rank.runs for rank in recording.ranks):
        yield Deviation(code="recording", message="no rank began a run: nothing to compare")


def _sequence(
    rank: RankRecording,
    number: int,
    plan: PipelinePlan,
    planned: list[Placed],
    micro_batches: int | None,
) -> Iterator[Observation]:
    """Compare a rank's run up to the first difference: after it, all others follow from it.

    Where the data held fewer micro-batches than the plan, instructions of later ones are skipped;
    until a rank knew, it may have entered some of them, in their order.
    """
    run = rank.run(number)
    executed = [] if run is None else [e.placed for e in run.executed]

    def deviation(step: int | None, message: str) -> Deviation:
        return Deviation(
            code="sequence", message=message, rank=rank.header.rank, run=number, step=step
        )

    if run is not None and run.plan is not None and run.plan.micro_batches != plan.micro_batches:
        found, needed = run.plan.micro_batches, plan.micro_batches
        yield deviation(None, f"executed a plan for M = {found}, the given one is for M = {needed}")
        return
    count = plan.micro_batches if micro_batches is None else micro_batches
    told = len(executed) if run is None or run.told is None else run.told
    rest = deque(planned)
    for position, done in enumerate(executed):
        while rest and not exists(rest[0].instruction, count):
            if position < told and _same(rest[0], done):
                break
            rest.popleft()
        if not rest:
            yield deviation(done.step, f"executed {_in_full(done)} after the end of the plan")
            return
        if not _same(rest[0], done):
            wanted = f"the plan has {_in_full(rest[0])}"
            if position >= told and not exists(done.instruction, count):
                wanted = f"though it knew that the data ends after {count} micro-batches"
            yield deviation(done.step, f"executed {_in_full(done)}, {wanted}")
            return
        rest.popleft()
    rest = deque(placed for placed in rest if exists(placed.instruction, count))
    if run is None or run.end is None:
        total = sum(exists(placed.instruction, count) for placed in planned)
        yield (
            f"{rank.name}, run {number}: cut short; the {len(executed)} of {total} "
            "instructions that it entered are a prefix of the plan"
        )
    elif rest:
        yield deviation(rest[0].step, f"the run ended without {_in_full(rest[0])}")


def _same(due: Placed, done: Placed) -> bool:
    return (done.step, done.instruction) == (due.step, due.instruction)


def _end_of_data(
    recording: Recording, pipeline: PipelineId, number: int, plan: PipelinePlan
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


def _in_full(placed: Placed) -> str:
    return f"{placed.instruction!r} ({placed.where})"
