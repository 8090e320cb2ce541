"""`schedcc compile`, `show` and `check`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from schedcc.cli.options import (
    AsJson,
    BufferedSends,
    File,
    MicroBatches,
    Overlap,
    Queue,
    StageId,
    Stages,
    compiled,
    read_or_compiled,
    transport_model,
)
from schedcc.files import read_plan
from schedcc.grid import Window, draw, epilogue_lines, fitting, legend, step_count, title
from schedcc.verify import check
from schemas import StagePlan


def compile_command(
    micro_batches: MicroBatches = None,
    stages: Stages = None,
    stage_id: StageId = None,
    overlap: Overlap = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default: standard output.")
    ] = None,
) -> None:
    """Compile a checked plan and write it as JSON."""
    text = compiled(micro_batches, stages, stage_id, overlap).model_dump_json()
    if output is None:
        typer.echo(text)
        return
    try:
        output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{output}: cannot be written: {error.strerror}") from error


def show(
    file: File = None,
    micro_batches: MicroBatches = None,
    stages: Stages = None,
    stage_id: StageId = None,
    overlap: Overlap = False,
    steps: Annotated[
        str | None, typer.Option(help="Steps to draw, A:B; default: as many as fit.")
    ] = None,
) -> None:
    """Draw the grid of steps and stages."""
    plan = read_or_compiled(file, micro_batches, stages, stage_id, overlap)
    console = Console(highlight=False, markup=False, emoji=False)  # a plan's text is no markup
    if steps is None:
        window = fitting(plan, console.width)
    else:
        window = Window.parse(steps, step_count(plan))
        console.width = 1_000_000  # the user has chosen the steps: nothing is folded
    console.print(title(plan, window))
    console.print(draw(plan, window))
    for line in [*epilogue_lines(plan), legend(plan)]:
        console.print(line)


def check_command(
    file: Annotated[Path, typer.Argument(help="Plan file.")],
    queue: Queue = "stage",
    buffered_sends: BufferedSends = 0,
    as_json: AsJson = False,
) -> None:
    """Verify a plan file: exit 0 if it is sound, 1 with errors, 2 if it is no plan.

    By default for the strictest transport, under which a sound plan is sound everywhere.
    """
    plan = read_plan(file)
    report = check(plan, transport_model(queue, buffered_sends))
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        for finding in report.findings:
            typer.echo(str(finding))
        asked = ", ".join(report.checks)
        if isinstance(plan, StagePlan):
            asked += f"; stage {plan.stage_id} alone, not its transfers with the others"
        else:
            asked += f"; {report.transport}"
        errors = len(list(report.errors()))
        verdict = "sound" if report.ok else f"{errors} finding{'s' if errors != 1 else ''}"
        typer.echo(f"{file}: {verdict} ({asked})")
    raise typer.Exit(0 if report.ok else 1)
