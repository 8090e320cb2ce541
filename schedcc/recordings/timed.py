"""Recorded runs as columns over a common time: what was executed, and from when to when."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from schedcc.analysis.breakdown import breakdown
from schedcc.analysis.levels import Seconds
from schedcc.recordings.recording import PipelineId, RecordedRun, Recording
from schedcc.table.codes import IS_FORWARD, Bools
from schedcc.table.table import PlanTable
from schemas import Costs, PlanHeader
from schemas.reports.breakdown import Breakdown


@dataclass(frozen=True, eq=False)
class TimedRun:
    """What the ranks of a pipeline executed in one run, and when."""

    number: int
    table: PlanTable
    """The instructions that were entered."""
    start: Seconds
    """`[rows]`: seconds since the origin."""
    end: Seconds
    """`[rows]`: the same; of an instruction that was never left, the recording's last event."""
    left: Bools
    """`[rows]`: whether each was left."""


def numbers_of_runs(recording: Recording, run: int | None) -> list[int]:
    """The runs to look at: one, or all.

    Raises:
        ValueError: there is no such run.
    """
    recorded = sorted({r.number for rank in recording.ranks for r in rank.runs})
    if run is not None and run not in recorded:
        known = ", ".join(map(str, recorded)) or "none"
        raise ValueError(f"run is {run}, needed a run of the recording ({known})")
    return recorded if run is None else [run]


def origin_of(recording: Recording, numbers: list[int]) -> int:
    """When the first of some runs began, in nanoseconds common to all ranks."""
    chosen = (r.start for rank in recording.ranks for r in rank.runs if r.number in numbers)
    return min(chosen, default=min(rank.first for rank in recording.ranks))


def timed_runs(
    recording: Recording, pipeline: PipelineId, numbers: list[int], origin: int
) -> Iterator[TimedRun]:
    """The runs with these numbers of a pipeline, as far as they got."""
    by_rank = recording.pipelines[pipeline]
    for number in numbers:
        found = {
            rank: run for rank, file in by_rank.items() if (run := file.run(number)) is not None
        }
        if found:
            yield _timed(number, found, recording.last, origin)


def _timed(number: int, found: dict[int, RecordedRun], last: int, origin: int) -> TimedRun:
    runs = [run.executed for run in found.values()]
    plans = (run.plan.header for run in found.values() if run.plan is not None)
    header = next(plans, None) or _one_to_one(max(found) + 1)
    table = PlanTable.joined(header, [(rank, run.executed.rows, ()) for rank, run in found.items()])
    left = np.concatenate([run.left for run in runs])
    start, end = (np.concatenate([getattr(run, at) for run in runs]) for at in ("start", "end"))
    end = np.where(left, end, last)
    return TimedRun(number, table, (start - origin) / 1e9, (end - origin) / 1e9, left)


def _one_to_one(ranks: int) -> PlanHeader:
    return PlanHeader.model_construct(
        format="", micro_batches=0, stages=ranks, ranks=ranks, placement=(), num_buffers=0
    )


def recorded_breakdown(
    recording: Recording, pipeline: PipelineId, run: int | None = None
) -> Breakdown:
    """Where the time of a pipeline's ranks went, in one run or in all.

    Raises:
        ValueError: there is no such run.
    """
    numbers = numbers_of_runs(recording, run)
    origin = origin_of(recording, numbers)
    return spent(list(timed_runs(recording, pipeline, numbers, origin)))


def spent(runs: list[TimedRun]) -> Breakdown:
    """Where the time went in some runs of a pipeline, what lies between them included."""
    if not runs:
        return Breakdown(seconds=0.0, ranks=(), bottleneck=None)
    table = joined_tables([run.table for run in runs])
    start, end = (np.concatenate([getattr(run, at) for run in runs]) for at in ("start", "end"))
    seconds = float(end.max(initial=0.0) - start.min(initial=0.0)) if len(end) else 0.0
    return breakdown(table, start, end, seconds)


def joined_tables(tables: list[PlanTable]) -> PlanTable:
    """The rows of several tables of one pipeline, one table after the other."""
    first = tables[0]
    return PlanTable(
        micro_batches=first.micro_batches,
        stages=first.stages,
        ranks=first.ranks,
        placement=first.placement,
        num_buffers=first.num_buffers,
        rank_ids=np.concatenate([table.rank_ids for table in tables]),
        program=np.concatenate(
            [table.program + before for table, before in zip(tables, _before(tables), strict=True)]
        ),
        rows=type(first.rows).joined([table.rows for table in tables]),
        epilogues=sum((table.epilogues for table in tables), ()),
    )


def _before(tables: list[PlanTable]) -> list[int]:
    """How many programs the tables before each have."""
    counts = [len(table.rank_ids) for table in tables]
    return [sum(counts[:index]) for index in range(len(counts))]


def measured_costs(recording: Recording, run: int | None = None) -> Costs:
    """Costs for a simulation: the median forward of each stage, and nothing else.

    How long a transfer takes cannot be told from waiting for it.

    Raises:
        ValueError: there is no such run, a stage forwarded nothing in it, or its times are absurd.
    """
    numbers = numbers_of_runs(recording, run)
    took: dict[int, list[Seconds]] = {}
    stages = 0
    for pipeline in recording.pipelines:
        for timed in timed_runs(recording, pipeline, numbers, 0):
            rows, seconds = timed.table.rows, timed.end - timed.start
            stages = max(stages, timed.table.stages)
            forward = IS_FORWARD[rows.op] & timed.left
            for stage in np.unique(rows.stage[forward]).tolist():
                took.setdefault(stage, []).append(seconds[forward & (rows.stage == stage)])
    missing = next((stage for stage in range(stages) if stage not in took), None)
    if missing is not None or not stages:
        raise ValueError(
            f"the recording has no forward of stage {missing or 0}, needed one of each "
            "stage to predict from (or --forward)"
        )
    medians = [float(np.median(np.concatenate(took[stage]))) for stage in range(stages)]
    if (least := min(medians)) < 0:
        raise ValueError(
            f"the recording is damaged: the forwards of stage {medians.index(least)} ended "
            f"{-least:g} s before they began"
        )
    return Costs(forward=tuple(medians))
