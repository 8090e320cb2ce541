"""`schedcc breakdown`."""

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from schedcc.cli.drawing import Run, require_recording
from schedcc.cli.options import (
    DEFAULT_SCHEDULE,
    ActivationBytes,
    AsJson,
    Bandwidth,
    CostsFile,
    Forward,
    MicroBatches,
    Overlap,
    Queue,
    Ranks,
    ScheduleName,
    Stages,
    Transfer,
    Wanted,
    cost_model,
    pipeline_plan,
    transport_model,
    variant_for,
)
from schedcc.cli.output import print_rich, say
from schedcc.io.plan_files import write_text
from schedcc.recordings.files import read_recording
from schedcc.recordings.recording import Recording
from schedcc.recordings.timed import recorded_breakdown
from schedcc.simulation.simulate import prediction
from schemas.reports.breakdown import Breakdown, Breakdowns, RankSeconds

_COLUMNS = ("forward", "data", "receive", "send", "other", "idle")


def breakdown_command(
    source: Annotated[
        Path | None,
        typer.Argument(help="Directory of a recording, or a plan file to simulate; or -M and -S."),
    ] = None,
    micro_batches: MicroBatches = None,
    stages: Stages = None,
    schedule: ScheduleName = DEFAULT_SCHEDULE,
    ranks: Ranks = None,
    overlap: Overlap = False,
    costs: CostsFile = None,
    forward: Forward = None,
    transfer: Transfer = None,
    activation_bytes: ActivationBytes = None,
    bandwidth: Bandwidth = None,
    queue: Queue = "stage",
    run: Run = None,
    as_json: AsJson = False,
) -> None:
    """Say where the time of each stage went: who holds up others.

    Examples:
      schedcc breakdown run17
      schedcc breakdown -M 64 -S 4 --forward 1,1,2,1 --transfer 0.25
    """
    wanted = Wanted(micro_batches, stages, variant_for(overlap, queue), schedule, ranks)
    given = (costs, forward, transfer, activation_bytes, bandwidth)
    if source is not None and source.is_dir():
        if wanted != Wanted() or any(value is not None for value in given):
            raise ValueError("options of plans and costs are given, found a recording")
        found = _of_recording(read_recording(source), run)
    else:
        require_recording(run)
        plan = pipeline_plan(source, wanted)
        predicted = prediction(plan, cost_model(*given), transport_model(queue, 0))
        found = Breakdowns(pipelines={"simulated": predicted.breakdown})
    if as_json:
        write_text(found.model_dump_json(indent=2) + "\n", None)
        return
    for name, breakdown in found.pipelines.items():
        if len(found.pipelines) > 1:
            say(name)
        _print(breakdown)


def _of_recording(recording: Recording, run: int | None) -> Breakdowns:
    return Breakdowns(
        pipelines={
            str(pipeline): recorded_breakdown(recording, pipeline, run)
            for pipeline in recording.pipelines
        }
    )


def _print(breakdown: Breakdown) -> None:
    table = Table(box=box.ROUNDED, pad_edge=False)
    for heading in ("rank", "stage", *_COLUMNS):
        table.add_column(heading, justify="right")
    for rank in breakdown.ranks:
        for row in _rows(rank):
            table.add_row(*row)
    print_rich(table)
    say(_verdict(breakdown))


def _rows(rank: RankSeconds) -> list[tuple[str, ...]]:
    """A row for each stage; what is of no stage stands in the first."""
    rest = (rank.other, rank.idle)
    if not rank.stages:
        return [(str(rank.rank), "", "", "", "", "", *map(_seconds, rest))]
    return [
        (
            "" if number else str(rank.rank),
            str(stage.stage_id),
            *map(_seconds, (stage.forward, stage.data, stage.receive, stage.send)),
            *(("", "") if number else map(_seconds, rest)),
        )
        for number, stage in enumerate(rank.stages)
    ]


def _verdict(breakdown: Breakdown) -> str:
    if breakdown.bottleneck is None:
        return f"{breakdown.seconds:.6g} s, without a forward"
    rank, stage = next(
        (rank, stage)
        for rank in breakdown.ranks
        for stage in rank.stages
        if stage.stage_id == breakdown.bottleneck
    )
    share = rank.work / breakdown.seconds if breakdown.seconds else 0.0
    what = "data" if stage.data > stage.forward else "forwards"
    return (
        f"{breakdown.seconds:.6g} s; bottleneck: stage {stage.stage_id}, mostly {what}: rank "
        f"{rank.rank} works {share:.1%} of the time"
    )


def _seconds(value: float) -> str:
    return f"{value:.6g} s"
