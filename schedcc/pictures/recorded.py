"""Panels of recordings: what the ranks executed, when, and where they ended."""

import numpy as np

from schedcc.analysis.levels import Seconds
from schedcc.io.plain_text import visible
from schedcc.pictures.panel import Arrows, Mark, Panel, arrange, matched
from schedcc.recordings.recording import PipelineId, Recording
from schedcc.recordings.timed import (
    TimedRun,
    joined_tables,
    numbers_of_runs,
    origin_of,
    spent,
    timed_runs,
)


def recording_panels(recording: Recording, run: int | None = None) -> list[Panel]:
    """A panel for each pipeline of a recording, all on one time axis.

    Args:
        recording: Any recording.
        run: Draw this run alone; default: all.

    Raises:
        ValueError: there is no such run, or no rank began one.
    """
    numbers = numbers_of_runs(recording, run)
    origin = origin_of(recording, numbers)
    panels = []
    for pipeline in recording.pipelines:
        runs = list(timed_runs(recording, pipeline, numbers, origin))
        if runs:
            panels.append(_panel(recording, pipeline, runs, origin))
    if not panels:
        raise ValueError("no rank began a run: nothing to draw")
    return panels


def _panel(recording: Recording, pipeline: PipelineId, runs: list[TimedRun], origin: int) -> Panel:
    table = joined_tables([run.table for run in runs])
    start, end = (np.concatenate([getattr(run, at) for run in runs]) for at in ("start", "end"))
    number = np.repeat([run.number for run in runs], [len(run.start) for run in runs])
    boxes, arrows = arrange(table, start, end, number, _arrows(runs))
    length = float(end.max(initial=0.0))
    devices = {rank.header.device for rank in recording.pipelines[pipeline].values()} - {"cpu"}
    limit = (
        ""
        if not devices
        else (
            f"; on {', '.join(map(visible, sorted(devices)))} an instruction ends when it has been "
            "enqueued"
        )
    )
    counted = f"run {runs[0].number}" if len(runs) == 1 else f"{len(runs)} runs"
    return Panel(
        title=f"recorded: {pipeline}" if len(recording.pipelines) > 1 else "recorded",
        note=f"recorded: {length:.6g} s, {counted}{limit}",
        unit="seconds",
        length=length,
        unit_of_rank=table.header.unit,
        boxes=boxes,
        arrows=arrows,
        marks=tuple(_marks(recording, pipeline, runs, origin, length)),
        breakdown=spent(runs),
    )


def _arrows(runs: list[TimedRun]) -> Arrows:
    """Transfers match within a run: the next one begins anew."""
    found, before = [], 0
    for run in runs:
        found.append(matched(run.table, _arrival(run)))
        found[-1] = Arrows(found[-1].send + before, found[-1].receive + before, found[-1].end)
        before += len(run.start)
    return Arrows(
        *(np.concatenate([getattr(a, name) for a in found]) for name in ("send", "receive", "end"))
    )


def _arrival(run: TimedRun) -> Seconds:
    """`[rows]`: that of a posted receive is the end of its wait, if it was waited for."""
    arrival = run.end.copy()
    post, wait = run.table.splits
    arrival[post] = run.end[wait]
    return arrival


def _marks(
    recording: Recording, pipeline: PipelineId, runs: list[TimedRun], origin: int, length: float
) -> list[Mark]:
    found = []
    for run in runs:
        for row in np.flatnonzero(~run.left).tolist():
            rank = int(run.table.rank[row])
            place = rank, float(run.start[row]), float(run.end[row])
            found.append(Mark(f"rank {rank} was in this instruction at the end", "error", *place))
    for number, rank_file in recording.pipelines[pipeline].items():
        for when, error in rank_file.errors:
            at = (when - origin) / 1e9
            text = visible(f"{rank_file.name}: {error.kind}: {error.message}", lines=True)
            inside = 0 <= at <= length
            found.append(Mark(text, "error", number, at, at) if inside else Mark(text, "error"))
    found += [Mark(visible(f"damaged: {damage}"), "warning") for damage in recording.damages]
    return found
