"""The command line of the compiler: `schedcc compile`, `show` and `check`.

Exit status: 0 sound, 1 findings, 2 bad input (one line on standard error).
"""

from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from schedcc import __version__
from schedcc.checks import check
from schedcc.compiler import compile_pipeline, compile_stage
from schedcc.files import read_plan
from schedcc.grid import Window, draw, epilogue_lines, fitting, legend, step_count, title
from schemas import PipelinePlan, StagePlan

app = typer.Typer(
    name="schedcc",
    help="Compile, draw and verify pipeline-parallel evaluation schedules.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

MicroBatches = Annotated[
    int | None, typer.Option("--micro-batches", "-M", help="M, the number of micro-batches.")
]
Stages = Annotated[int | None, typer.Option("--stages", "-S", help="S, the number of stages.")]
Overlap = Annotated[
    bool, typer.Option("--overlap", help="Split transfers, so that they cross the forwards.")
]
StageId = Annotated[int | None, typer.Option("--stage-id", help="Only this stage, 0 to S - 1.")]


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Handle what is no command."""
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.command("compile")
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
    text = _compile(micro_batches, stages, stage_id, overlap).model_dump_json()
    if output is None:
        typer.echo(text)
        return
    try:
        output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{output}: cannot be written: {error.strerror}") from error


@app.command()
def show(
    file: Annotated[Path | None, typer.Argument(help="Plan file; or give -M and -S.")] = None,
    micro_batches: MicroBatches = None,
    stages: Stages = None,
    stage_id: StageId = None,
    overlap: Overlap = False,
    steps: Annotated[
        str | None, typer.Option(help="Steps to draw, A:B; default: as many as fit.")
    ] = None,
) -> None:
    """Draw the grid of steps and stages."""
    if file is None:
        plan = _compile(micro_batches, stages, stage_id, overlap)
    elif (micro_batches, stages, stage_id, overlap) != (None, None, None, False):
        raise ValueError("show takes a plan file or -M and -S, not both")
    else:
        plan = read_plan(file)
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


@app.command("check")
def check_command(
    file: Annotated[Path, typer.Argument(help="Plan file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Verify a plan file: exit 0 if it is sound, 1 with findings, 2 if it is no plan."""
    plan = read_plan(file)
    report = check(plan)
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        for finding in report.findings:
            typer.echo(str(finding))
        asked = ", ".join(report.checks)
        if isinstance(plan, StagePlan):
            asked += f"; stage {plan.stage_id} alone, not its transfers with the others"
        count = len(report.findings)
        verdict = "sound" if report.ok else f"{count} finding{'s' if count != 1 else ''}"
        typer.echo(f"{file}: {verdict} ({asked})")
    raise typer.Exit(0 if report.ok else 1)


def main() -> NoReturn:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    try:
        app()
    except ValueError as error:
        typer.echo(f"schedcc: {error}", err=True)
        raise SystemExit(2) from None
    raise SystemExit(0)


def _compile(
    micro_batches: int | None, stages: int | None, stage_id: int | None, overlap: bool
) -> PipelinePlan | StagePlan:
    if micro_batches is None or stages is None:
        raise ValueError("needed the numbers of micro-batches and stages, such as -M 8 -S 4")
    if stage_id is None:
        return compile_pipeline(micro_batches, stages, overlap=overlap)
    return compile_stage(micro_batches, stages, stage_id, overlap=overlap)
