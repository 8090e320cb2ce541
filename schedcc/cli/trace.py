"""`schedcc trace`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from schedcc.cli.drawing import Html, Run, Svg, require_recording, write_pictures
from schedcc.cli.options import (
    DEFAULT_SCHEDULE,
    ActivationBytes,
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
from schedcc.cli.output import say
from schedcc.io.plain_text import visible
from schedcc.io.plan_files import write_text
from schedcc.pictures.panel import Panel
from schedcc.pictures.planned import plan_panel
from schedcc.pictures.recorded import recording_panels
from schedcc.recordings.files import read_recording
from schedcc.recordings.recording import Recording
from schedcc.recordings.timed import measured_costs
from schedcc.simulation.simulate import simulate
from schedcc.trace import recorded_trace, simulated_trace
from schemas import Costs, PipelinePlan
from schemas.transport import Queues


def trace_command(
    source: Annotated[
        Path | None,
        typer.Argument(help="Directory of a recording, or a plan file to simulate; or -M and -S."),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Argument(help="Directory of a recording, to be drawn below the plan (--html)."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; default: trace.json, if it is new."),
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
    html: Html = None,
    svg: Svg = None,
) -> None:
    """Write a recorded or simulated run as a trace for Perfetto.

    chrome://tracing reads it, too. With --html or --svg, draw it instead; a plan and a recording
    are drawn one above the other, where the costs of the plan are by default the forwards that were
    measured.

    Examples:
      schedcc trace run17 -o run17.json
      schedcc trace -M 8 -S 4 --overlap --transfer 0.25
      schedcc trace plan.json run17 --html run17.html
    """
    draws = html is not None or svg is not None
    if not draws and output is None and Path("trace.json").exists():
        raise ValueError("trace.json is there already, needed -o FILE to name the file")
    if source is not None and directory is None and source.is_dir():
        source, directory = None, source
    recording = None if directory is None else read_recording(directory)
    plan = None
    wanted = Wanted(micro_batches, stages, variant_for(overlap, queue), schedule, ranks)
    if recording is None or source is not None or wanted != Wanted():
        plan = pipeline_plan(source, wanted)
    _require_sense(plan, recording, run, traces=output is not None or not draws)
    assumed = _costs(plan, recording, run, costs, forward, transfer, activation_bytes, bandwidth)
    if draws:
        title = visible(directory or source or "simulation")
        write_pictures(title, _panels(plan, assumed, queue, recording, run), html, svg)
    if output is not None or not draws:
        chosen = output or Path("trace.json")
        trace = _trace(plan, assumed, queue, recording, run)
        write_text(json.dumps(trace) + "\n", chosen)
        say(f"{visible(chosen)}: {len(trace['traceEvents'])} events")


def _require_sense(
    plan: PipelinePlan | None, recording: Recording | None, run: int | None, *, traces: bool
) -> None:
    """Refuse what does not go together."""
    if plan is not None and recording is not None and traces:
        raise ValueError("a trace is of a plan or a recording, needed --html or --svg for both")
    if recording is None:
        require_recording(run)


def _costs(
    plan: PipelinePlan | None, recording: Recording | None, run: int | None, *given: Any
) -> Costs:
    """What the options say; if they say nothing and there is a recording, what was measured.

    Raises:
        ValueError: there are options, and no plan that they are the costs of.
    """
    silent = all(value is None for value in given)
    if plan is None and not silent:
        raise ValueError("costs are those of a plan, found a recording alone")
    if plan is not None and recording is not None and silent:
        return measured_costs(recording, run)
    return cost_model(*given)


def _panels(
    plan: PipelinePlan | None,
    costs: Costs,
    queue: Queues,
    recording: Recording | None,
    run: int | None,
) -> list[Panel]:
    predicted = [] if plan is None else [plan_panel(plan, costs, transport_model(queue, 0))]
    return predicted + ([] if recording is None else recording_panels(recording, run))


def _trace(
    plan: PipelinePlan | None,
    costs: Costs,
    queue: Queues,
    recording: Recording | None,
    run: int | None,
) -> dict[str, Any]:
    if recording is not None:
        return recorded_trace(recording, run)
    assert plan is not None
    return simulated_trace(simulate(plan, costs, transport_model(queue, 0)))
