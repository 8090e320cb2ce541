"""`schedcc export` and `import`."""

from pathlib import Path
from typing import Annotated

import typer

from schedcc.cli.options import (
    DEFAULT_SCHEDULE,
    File,
    MicroBatches,
    Output,
    Overlap,
    Ranks,
    ScheduleName,
    Stages,
    Wanted,
    pipeline_plan,
)
from schedcc.io.exchange import read_torch_csv, to_torch_csv
from schedcc.io.exchange.reading import Format
from schedcc.io.plan_files import write_text


def export_command(
    file: File = None,
    micro_batches: MicroBatches = None,
    stages: Stages = None,
    schedule: ScheduleName = DEFAULT_SCHEDULE,
    ranks: Ranks = None,
    overlap: Overlap = False,
    output: Output = None,
) -> None:
    """Write a plan as a CSV for torch.distributed.pipelining.

    Load it with _PipelineScheduleRuntime._load_csv(file, format="compute_comms") and call eval.

    Example:
      schedcc export -M 8 -S 4 -o schedule.csv
    """
    plan = pipeline_plan(file, Wanted(micro_batches, stages, overlap, schedule, ranks))
    write_text(to_torch_csv(plan), output)


def import_command(
    file: Annotated[Path, typer.Argument(help="CSV file of torch.distributed.pipelining.")],
    micro_batches: Annotated[
        int | None,
        typer.Option("--micro-batches", "-M", help="M; default: as many as the file forwards."),
    ] = None,
    form: Annotated[
        Format | None,
        typer.Option("--format", help="Whether the file names transfers; default: as it shows."),
    ] = None,
    output: Output = None,
) -> None:
    """Write what torch does with a CSV under eval as a plan.

    It is not checked. The other commands read such files, too: schedcc check FILE.csv.

    Example:
      schedcc import schedule.csv -o plan.json
    """
    plan = read_torch_csv(file, micro_batches=micro_batches, form=form)
    write_text(plan.model_dump_json() + "\n", output)
