"""`schedcc simulate` and `compare`."""

import typer
from rich import box
from rich.table import Table

from schedcc.analysis.compare import compare
from schedcc.analysis.simulate import simulate
from schedcc.cli.options import (
    DEFAULT_SCHEDULE,
    ActivationBytes,
    AsJson,
    Bandwidth,
    BufferedSends,
    File,
    Forward,
    MicroBatches,
    Overlap,
    Queue,
    Ranks,
    ScheduleName,
    Stages,
    Transfer,
    all_stages,
    compiled,
    cost_model,
    read_or_compiled,
    transport_model,
)
from schedcc.cli.output import print_rich, say
from schemas import PipelinePlan, Timeline


def simulate_command(
    file: File = None,
    micro_batches: MicroBatches = None,
    stages: Stages = None,
    schedule: ScheduleName = DEFAULT_SCHEDULE,
    ranks: Ranks = None,
    overlap: Overlap = False,
    forward: Forward = "1",
    transfer: Transfer = 0.0,
    activation_bytes: ActivationBytes = 0,
    bandwidth: Bandwidth = None,
    queue: Queue = "stage",
    buffered_sends: BufferedSends = 0,
    as_json: AsJson = False,
) -> None:
    """Predict how long a plan takes, and where stages are idle."""
    plan = all_stages(
        read_or_compiled(file, micro_batches, stages, None, overlap, schedule, ranks), file
    )
    costs = cost_model(forward, transfer, activation_bytes, bandwidth)
    timeline = simulate(plan, costs, transport_model(queue, buffered_sends))
    if as_json:
        typer.echo(timeline.model_dump_json(indent=2))
    else:
        _print_timeline(plan, timeline)


def compare_command(
    micro_batches: MicroBatches = None,
    stages: Stages = None,
    forward: Forward = "1",
    transfer: Transfer = 0.0,
    activation_bytes: ActivationBytes = 0,
    bandwidth: Bandwidth = None,
    queue: Queue = "stage",
    buffered_sends: BufferedSends = 0,
) -> None:
    """Set evaluation, blocking and overlapped, beside 1F1B training."""
    plan = compiled(micro_batches, stages, None, overlap=False)
    costs = cost_model(forward, transfer, activation_bytes, bandwidth)
    transport = transport_model(queue, buffered_sends)
    table = Table(box=box.ROUNDED, pad_edge=False)
    table.add_column("")
    columns = compare(plan.micro_batches, plan.stages, costs, transport)
    for column in columns:
        table.add_column(column.name, justify="right")
    table.add_row("steps", *(str(column.steps) for column in columns))
    table.add_row("buffers of a stage", *(column.buffers for column in columns))
    table.add_row("bubble of equal stages", *(f"{column.ideal_bubble:.1%}" for column in columns))
    spans = [(c.timeline.makespan, c.timeline.bubble) if c.timeline else None for c in columns]
    table.add_row("seconds, simulated", *(f"{s[0]:.6g}" if s else "-" for s in spans))
    table.add_row("bubble, simulated", *(f"{s[1]:.1%}" if s else "-" for s in spans))
    say(f"M = {plan.micro_batches} micro-batches, S = {plan.stages} stages, {transport}")
    print_rich(table)


def _print_timeline(plan: PipelinePlan, timeline: Timeline) -> None:
    say(
        f"M = {plan.micro_batches} micro-batches, S = {plan.stages} stages: "
        f"{timeline.makespan:.6g} s, {timeline.bubble:.1%} idle"
    )
    say(
        f"without transfers at best {timeline.ideal:.6g} s = all forwards of one micro-batch "
        f"+ (M - 1) x slowest, "
        f"{timeline.ideal_bubble:.1%} idle with equal stages"
    )
    table = Table(box=box.ROUNDED, pad_edge=False)
    for heading in (plan.unit, "busy", "idle", "peak bytes"):
        table.add_column(heading, justify="right")
    for stage in timeline.stages:
        seconds = (f"{stage.busy:.6g} s", f"{stage.idle:.6g} s")
        table.add_row(str(stage.rank), *seconds, str(stage.peak_bytes))
    print_rich(table)
