"""`schedcc postmortem` and `conform`."""

from pathlib import Path
from textwrap import shorten
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from schedcc.cli.options import AsJson
from schedcc.cli.output import cell_text, print_rich, say, screen_width
from schedcc.io.plain_text import visible
from schedcc.io.plan_files import write_text
from schedcc.io.plan_table import read_plan_table
from schedcc.recordings.conform import CLOCK_ERROR, conform
from schedcc.recordings.files import read_recording
from schedcc.recordings.postmortem import postmortem
from schemas.reports.postmortem import Postmortem, RankStatus

Directory = Annotated[Path, typer.Argument(help="Directory of a recording (pipeval --record).")]

_WIDTH = 100
"""The least width of a table, where the terminal (or its absence) would give less."""


def postmortem_command(directory: Directory, as_json: AsJson = False) -> None:
    """Say which rank ended a recorded run, and what each was doing.

    Example:
      schedcc postmortem run17

    Exit status: 0 every rank ended in order; 1 one did not; 2 no recording.
    """
    found = postmortem(read_recording(directory))
    if as_json:
        write_text(found.model_dump_json(indent=2) + "\n", None)
    else:
        _print_postmortem(directory, found)
    raise typer.Exit(0 if found.cause is None else 1)


def conform_command(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="[PLAN] DIRECTORY",
            help="A plan file, or - for standard input, and the directory of a recording. Without "
            "a plan: those that the recording holds, each run with its own.",
        ),
    ],
    run: Annotated[int | None, typer.Option(help="Compare this run alone, from 0.")] = None,
    clock_error: Annotated[
        float, typer.Option(help="Seconds by which clocks of different machines may disagree.")
    ] = CLOCK_ERROR,
    as_json: AsJson = False,
) -> None:
    """Say whether a recorded run followed a plan.

    Examples:
      schedcc conform run17
      schedcc conform plan.json run17

    Exit status: 0 it did; 1 it did not; 2 bad input.
    """
    if len(paths) > 2:
        raise ValueError(f"found {len(paths)} paths, needed a plan and a directory at most")
    *files, directory = paths
    plan = read_plan_table(files[0]) if files else None
    found = conform(plan, read_recording(directory), run=run, clock_error=clock_error)
    if as_json:
        write_text(found.model_dump_json(indent=2) + "\n", None)
    else:
        for line in (*found.deviations, *(f"note: {note}" for note in found.notes)):
            say(line)
        count = len(found.deviations)
        verdict = "followed the plan" if found.ok else f"{count} deviation{'s'[: count > 1]}"
        runs = f"{len(found.runs)} run{'s'[: len(found.runs) != 1]}"
        say(f"{visible(directory)}: {verdict} ({runs}, {found.instructions} instructions)")
    raise typer.Exit(0 if found.ok else 1)


def _print_postmortem(directory: Path, found: Postmortem) -> None:
    if found.cause is None:
        say(f"{visible(directory)}: every rank ended in order, after {found.seconds:.6g} s")
        print_rich(_activities(found))
    else:
        say(f"cause ({found.cause.kind}): {found.cause.message}")
        print_rich(_whereabouts(found), width=max(screen_width(), _WIDTH))
        _print_waits(found)
        if found.cause.traceback:
            say(found.cause.traceback.rstrip())
    for damage in found.damages:
        say(f"damaged: {damage}")


def _whereabouts(found: Postmortem) -> Table:
    table = Table(box=box.ROUNDED, pad_edge=False)
    for heading in ("rank", _stage_heading(found), "state"):
        table.add_column(heading, no_wrap=True)
    table.add_column("what it was doing", overflow="fold")
    table.add_column("since", justify="right", no_wrap=True)
    for status in found.ranks:
        ids = str(status.rank), ", ".join(map(str, status.stages))
        table.add_row(*ids, status.state, cell_text(_doing(status)), f"{status.since:.3f} s")
    table.caption = "since: before the last event of any rank"
    table.caption_justify = "left"
    return table


def _stage_heading(found: Postmortem) -> str:
    return "stage" if all(len(status.stages) == 1 for status in found.ranks) else "stages"


def _doing(status: RankStatus) -> str:
    run = "before its first run" if status.run is None else f"run {status.run}"
    text = f"{run}, {status.instruction.where if status.instruction else 'in no instruction'}"
    if status.error is None:
        return text
    message = status.error.message.strip().partition("\n")[0]
    return f"{text}\n{shorten(f'{status.error.kind}: {message}', 2 * _WIDTH, placeholder=' ...')}"


def _print_waits(found: Postmortem) -> None:
    if not found.waits:
        return
    width = [max(len(str(end)) for end in ends) for ends in zip(*_ends(found), strict=True)]
    for wait, (waiter, needed) in zip(found.waits, _ends(found), strict=True):
        say(f"  {waiter:{width[0]}}  waits for  {needed:{width[1]}}  ({wait.why})")


def _ends(found: Postmortem) -> list[tuple[str, str]]:
    return [(str(wait.waiter), str(wait.needed)) for wait in found.waits]


def _activities(found: Postmortem) -> Table:
    table = Table(box=box.ROUNDED, pad_edge=False)
    headings = ("rank", _stage_heading(found), "runs", "instructions", "forward", "transfers")
    for heading in (*headings, "other", "sent", "received"):
        table.add_column(heading, justify="right")
    for status in found.ranks:
        did = status.activity
        stages = ", ".join(map(str, status.stages))
        seconds = (did.forward_seconds, did.transfer_seconds, did.other_seconds)
        table.add_row(
            *(str(status.rank), stages, str(did.runs), str(did.instructions)),
            *(f"{value:.3f} s" for value in seconds),
            *(f"{value:,} B" for value in (did.sent_bytes, did.received_bytes)),
        )
    return table
