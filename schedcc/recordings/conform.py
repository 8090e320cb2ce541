"""Conformance: did a recorded run follow a plan?

Two questions. *Sequence*: did every rank execute the instructions of its stage, all of them, in
their order? *Order*: did nothing happen before what the plan makes it wait for (see
`schedcc.recordings.order`)?
"""

from collections.abc import Iterator

from schedcc.recordings.order import Causality
from schedcc.recordings.recording import RankRecording, Recording
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
    programs = {program.stage_id: list(program.placed()) for program in plan.programs}
    ranks = [rank for rank in recording.ranks if rank.header.stage_id in programs]
    followed = set()
    for rank in ranks:
        for number in runs:
            observed = list(_sequence(rank, number, plan, programs[rank.header.stage_id]))
            found += observed
            if not any(isinstance(o, Deviation) for o in observed):
                followed.add((rank.header.rank, number))
    causality = Causality(plan, recording, clock_error)
    found += causality.limits()
    for replica in sorted({rank.header.replica for rank in ranks}):
        of_replica = [rank for rank in ranks if rank.header.replica == replica]
        for number in runs:
            if all((rank.header.rank, number) in followed for rank in of_replica):
                found += causality.contradictions(replica, number)
    return Conformance(
        deviations=tuple(o for o in found if isinstance(o, Deviation)),
        runs=tuple(runs),
        instructions=sum(
            len(executed.executed)
            for rank in ranks
            for number in runs
            if (executed := rank.run(number)) is not None
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
    rank: RankRecording, number: int, plan: PipelinePlan, planned: list[Placed]
) -> Iterator[Observation]:
    """Compare a rank's run up to the first difference: after it, all others follow from it."""
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
    for done, due in zip(executed, planned, strict=False):
        if (done.step, done.instruction) != (due.step, due.instruction):
            message = f"executed {_in_full(done)}, the plan has {_in_full(due)}"
            yield deviation(done.step, message)
            return
    if len(executed) > len(planned):
        extra = executed[len(planned)]
        yield deviation(extra.step, f"executed {_in_full(extra)} after the end of the plan")
    elif run is None or run.end is None:
        yield (
            f"{rank.name}, run {number}: cut short; the {len(executed)} of {len(planned)} "
            "instructions that it entered are a prefix of the plan"
        )
    elif len(executed) < len(planned):
        due = planned[len(executed)]
        yield deviation(due.step, f"the run ended without {_in_full(due)}")


def _in_full(placed: Placed) -> str:
    return f"{placed.instruction!r} ({placed.where})"
