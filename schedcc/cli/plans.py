"""`schedcc compile`, `show` and `check`."""

from typing import Annotated

import typer

from schedcc.certify import check_schedule
from schedcc.cli.drawing import Html, Svg, write_pictures
from schedcc.cli.options import (
    DEFAULT_SCHEDULE,
    PLAN_FILE,
    ActivationBytes,
    AsJson,
    Bandwidth,
    BufferedSends,
    CostsFile,
    File,
    Forward,
    MicroBatches,
    Output,
    Overlap,
    Queue,
    Ranks,
    ScheduleName,
    StageId,
    Stages,
    StepBarrier,
    Transfer,
    Wanted,
    compiled,
    cost_model,
    read_or_compiled,
    required_sizes,
    transport_model,
    variant_for,
)
from schedcc.cli.output import print_rich, say, screen_width
from schedcc.io.bounded import shown
from schedcc.io.picture import Window, draw, epilogue_lines, fitting, legend, step_count, title
from schedcc.io.plan_files import write_text
from schedcc.pictures.planned import plan_panel
from schedcc.verify import check
from schemas import PipelinePlan, StagePlan


def compile_command(
    micro_batches: MicroBatches = None,
    stages: Stages = None,
    stage_id: StageId = None,
    schedule: ScheduleName = DEFAULT_SCHEDULE,
    ranks: Ranks = None,
    overlap: Overlap = False,
    queue: Queue = "stage",
    output: Output = None,
) -> None:
    """Compile a checked plan and write it as JSON.

    Examples:
      schedcc compile -M 8 -S 4 --overlap -o plan.json
      schedcc compile -M 8 -S 4 --schedule interleaved --ranks 2 | schedcc check -
    """
    plan = compiled(
        Wanted(micro_batches, stages, variant_for(overlap, queue), schedule, ranks, stage_id)
    )
    write_text(plan.model_dump_json() + "\n", output)


def show(
    file: File = None,
    micro_batches: MicroBatches = None,
    stages: Stages = None,
    stage_id: StageId = None,
    schedule: ScheduleName = DEFAULT_SCHEDULE,
    ranks: Ranks = None,
    overlap: Overlap = False,
    queue: Queue = "stage",
    steps: Annotated[
        str | None,
        typer.Option(help="Steps to draw, A:B; default: as many as fit, of pictures all."),
    ] = None,
    html: Html = None,
    svg: Svg = None,
    costs: CostsFile = None,
    forward: Forward = None,
    transfer: Transfer = None,
    activation_bytes: ActivationBytes = None,
    bandwidth: Bandwidth = None,
) -> None:
    """Draw the grid of steps and ranks, or the ranks over time.

    The grid is for the terminal. With --html or --svg the ranks are drawn over time, with findings
    where they are.

    Examples:
      schedcc show plan.json --steps 0:8
      schedcc show -M 8 -S 4 --overlap
      schedcc show -M 64 -S 4 --transfer 0.25 --html plan.html
    """
    plan = read_or_compiled(
        file, Wanted(micro_batches, stages, variant_for(overlap, queue), schedule, ranks, stage_id)
    )
    given = (costs, forward, transfer, activation_bytes, bandwidth)
    if html is not None or svg is not None:
        panel = plan_panel(plan, cost_model(*given), transport_model(queue, 0))
        if steps is not None:
            panel = panel.in_steps(*Window.parse(steps, step_count(plan)))
        write_pictures(panel.title, [panel], html, svg)
        return
    if any(value is not None for value in given):
        raise ValueError("costs are of times, needed --html FILE or --svg FILE with them")
    _print_grid(plan, steps)


def _print_grid(plan: PipelinePlan | StagePlan, steps: str | None) -> None:
    total, width = step_count(plan), screen_width()
    window = fitting(plan, width) if steps is None else Window.parse(steps, total)
    say(title(plan, window))
    if steps is None and window.stop < total:
        rest = f"--steps {window.stop}:{total}"
        say(f"the other {total - window.stop} do not fit into {width} columns: {rest} draws them")
    print_rich(draw(plan, window))
    for line in epilogue_lines(plan):
        say(line)
    print_rich(legend(plan, width))


def check_command(
    file: File = None,
    micro_batches: MicroBatches = None,
    stages: Stages = None,
    schedule: ScheduleName = DEFAULT_SCHEDULE,
    ranks: Ranks = None,
    overlap: Overlap = False,
    queue: Queue = "stage",
    buffered_sends: BufferedSends = 0,
    step_barrier: StepBarrier = False,
    as_json: AsJson = False,
) -> None:
    """Verify a plan: no deadlock, no lost or swapped micro-batch.

    By default for the strictest transport, under which a sound plan is sound everywhere. With -M
    and -S instead of a file: the compiler's own plan, of any size.

    Examples:
      schedcc check plan.json --queue channel
      schedcc check -M 100000 -S 64 --overlap

    Exit status: 0 sound; 1 findings; 2 no plan.
    """
    transport = transport_model(queue, buffered_sends, step_barrier)
    alone = ""
    if file is not None:
        plan = read_or_compiled(
            file, Wanted(micro_batches, stages, variant_for(overlap, queue), schedule, ranks)
        )
        report, name = check(plan, transport), shown(file)
        if isinstance(plan, StagePlan):
            alone = f"; {plan.unit} {plan.rank} alone, not its transfers with the others"
    else:
        sizes = required_sizes(micro_batches, stages, PLAN_FILE)
        report = check_schedule(
            *sizes,
            schedule=schedule,
            ranks=ranks,
            overlap=variant_for(overlap, queue),
            transport=transport,
        )
        on_ranks = "" if ranks is None else f", R = {ranks}"
        name = f"M = {sizes[0]}, S = {sizes[1]}{on_ranks}"
    if as_json:
        write_text(report.model_dump_json(indent=2) + "\n", None)
    else:
        for finding in report.findings:
            warning = "warning: " if finding.severity == "warning" else ""
            say(f"{warning}{finding}")
        asked = ", ".join(report.checks) + (alone or f"; {report.transport}")
        errors = sum(finding.count for finding in report.errors())
        verdict = "sound" if report.ok else f"{errors} finding{'s' if errors != 1 else ''}"
        say(f"{name}: {verdict} ({asked})")
    raise typer.Exit(0 if report.ok else 1)
