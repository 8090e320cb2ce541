"""`schedcc simulate` and `compare`."""

from collections.abc import Iterable

from rich import box
from rich.table import Table

from schedcc.analysis.times import backend_for
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
    Overlap,
    Queue,
    QueueOrDefault,
    Ranks,
    ScheduleName,
    Stages,
    StepBarrier,
    Transfer,
    Wanted,
    cost_model,
    pipeline_plan,
    required_sizes,
    transport_model,
    variant_for,
)
from schedcc.cli.output import print_rich, say, screen_width
from schedcc.compiler import compile_pipeline
from schedcc.io.plan_files import write_text
from schedcc.pictures.panel import Panel
from schedcc.pictures.planned import plan_panel
from schedcc.simulation.compare import compare
from schedcc.simulation.compiled import compiled_table
from schedcc.simulation.side_by_side import side_by_side, variant_name, variants
from schedcc.simulation.simulate import Prediction, prediction
from schemas import Costs, PipelinePlan
from schemas.reports.timeline import Comparison
from schemas.transport import Queues

_NARROWEST = 72
"""Columns into which a comparison fits, with headings of two lines."""


def simulate_command(
    file: File = None,
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
    buffered_sends: BufferedSends = 0,
    step_barrier: StepBarrier = False,
    as_json: AsJson = False,
) -> None:
    """Predict how long a plan takes, and where ranks are idle.

    Examples:
      schedcc simulate -M 64 -S 4 --overlap --transfer 0.25
      schedcc simulate plan.json --costs costs.json --step-barrier --json
    """
    assumed = cost_model(costs, forward, transfer, activation_bytes, bandwidth)
    transport = transport_model(queue, buffered_sends, step_barrier)
    if as_json or file is not None:
        plan = pipeline_plan(
            file, Wanted(micro_batches, stages, variant_for(overlap, queue), schedule, ranks)
        )
        predicted = prediction(plan, assumed, transport, backend_for(plan.programs))
        if as_json:
            write_text(predicted.timeline(plan).model_dump_json(indent=2) + "\n", None)
            return
    else:
        sizes = required_sizes(micro_batches, stages, PLAN_FILE)
        table = compiled_table(
            *sizes,
            schedule=schedule,
            ranks=ranks,
            overlap=variant_for(overlap, queue),
            transport=transport,
        )
        predicted = prediction(table, assumed, transport)
    _print_prediction(predicted)


def compare_command(
    micro_batches: MicroBatches = None,
    stages: Stages = None,
    schedule: ScheduleName = DEFAULT_SCHEDULE,
    ranks: Ranks = None,
    costs: CostsFile = None,
    forward: Forward = None,
    transfer: Transfer = None,
    activation_bytes: ActivationBytes = None,
    bandwidth: Bandwidth = None,
    queue: QueueOrDefault = None,
    buffered_sends: BufferedSends = 0,
    as_json: AsJson = False,
    html: Html = None,
    svg: Svg = None,
) -> None:
    """Compare blocking, overlapped and 1F1B, or all schedules.

    With --ranks and without --stages, all schedules that ship are compared on so many ranks; a
    forward is then that of all layers of a rank, and channels have queues of their own unless
    --queue says otherwise. --html and --svg draw them one above the other.

    Examples:
      schedcc compare -M 64 -S 4 --transfer 0.25
      schedcc compare -M 64 -S 8 --schedule interleaved --ranks 4
      schedcc compare -M 64 --ranks 4 --transfer 0.1
    """
    assumed = cost_model(costs, forward, transfer, activation_bytes, bandwidth)
    if html is not None or svg is not None:
        if as_json:
            raise ValueError("--json prints and --html and --svg draw, needed one of both")
        panels = _panels(micro_batches, stages, schedule, ranks, assumed, queue, buffered_sends)
        write_pictures(f"M = {micro_batches} micro-batches", panels, html, svg)
        return
    if stages is None and ranks is not None:
        number, _ = required_sizes(micro_batches, ranks)
        transport = transport_model(queue or "channel", buffered_sends)
        figures = side_by_side(number, ranks, assumed, transport)
        write_text(figures.model_dump_json(indent=2) + "\n" if as_json else f"{figures}\n", None)
        return
    sizes, transport = (
        required_sizes(micro_batches, stages),
        transport_model(queue or "stage", buffered_sends),
    )
    found = compare(*sizes, assumed, transport, schedule=schedule, ranks=ranks)
    if as_json:
        write_text(found.model_dump_json(indent=2) + "\n", None)
        return
    _print_comparison(found)


def _panels(
    micro_batches: int | None,
    stages: int | None,
    schedule: str,
    ranks: int | None,
    costs: Costs,
    queue: Queues | None,
    buffered_sends: int,
) -> list[Panel]:
    """What is compared: both variants of a schedule, or of all schedules."""
    plans: Iterable[tuple[PipelinePlan, bool, Costs]]
    if stages is None and ranks is not None:
        number, _ = required_sizes(micro_batches, ranks)
        transport = transport_model(queue or "channel", buffered_sends)
        plans = variants(number, ranks, costs, transport)
    else:
        sizes = required_sizes(micro_batches, stages)
        transport = transport_model(queue or "stage", buffered_sends)
        plans = (
            (
                compile_pipeline(*sizes, schedule=schedule, ranks=ranks, overlap=overlap),
                overlap,
                costs,
            )
            for overlap in (False, True)
        )
    return [
        plan_panel(plan, own, transport, title=variant_name(plan.schedule, overlap))
        for plan, overlap, own in plans
    ]


def _print_comparison(found: Comparison) -> None:
    table = Table(box=box.ROUNDED, pad_edge=False)
    table.add_column("")
    columns = found.schedules
    for column in columns:
        table.add_column(column.name, justify="right")
    table.add_row("steps", *(str(column.steps) for column in columns))
    table.add_row("buffers of a stage", *(column.buffers for column in columns))
    table.add_row("bubble of equal stages", *(f"{column.ideal_bubble:.1%}" for column in columns))
    seconds = ("-" if c.makespan is None else f"{c.makespan:.6g}" for c in columns)
    table.add_row("seconds, simulated", *seconds)
    bubbles = ("-" if c.bubble is None else f"{c.bubble:.1%}" for c in columns)
    table.add_row("bubble, simulated", *bubbles)
    on_ranks = "" if found.ranks == found.stages else f" on R = {found.ranks} ranks"
    say(
        f"M = {found.micro_batches} micro-batches, S = {found.stages} stages{on_ranks}, "
        f"{found.transport}"
    )
    print_rich(table, width=max(screen_width(), _NARROWEST))


def _print_prediction(predicted: Prediction) -> None:
    sizes = predicted.table
    one_to_one = sizes.is_one_to_one
    on_ranks = "" if one_to_one else f" on R = {sizes.ranks} ranks"
    say(
        f"M = {sizes.micro_batches} micro-batches, S = {sizes.stages} stages{on_ranks}: "
        f"{predicted.makespan:.6g} s, {predicted.bubble:.1%} idle"
    )
    parts = (
        "all forwards of one micro-batch + (M - 1) x slowest"
        if one_to_one
        else "all forwards of the slowest rank, and one micro-batch on its way there and on"
    )
    say(
        f"without transfers at best {predicted.ideal:.6g} s = {parts}, "
        f"{predicted.ideal_bubble:.1%} idle with equal stages"
    )
    table = Table(box=box.ROUNDED, pad_edge=False)
    for heading in (sizes.header.unit, "busy", "idle", "peak bytes"):
        table.add_column(heading, justify="right")
    for rank, program in predicted.programs():
        busy, held = predicted.busy[program], predicted.held[program]
        seconds = (f"{busy:.6g} s", f"{predicted.makespan - busy:.6g} s")
        table.add_row(str(rank), *seconds, str(held * predicted.costs.activation_bytes))
    print_rich(table)
