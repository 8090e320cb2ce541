"""Options that several commands share, and what they mean together."""

import math
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from pydantic import ValidationError

from schedcc.compiler import compile_pipeline, compile_stage
from schedcc.errors import ScheduleError
from schedcc.io.bounded import shown
from schedcc.io.cost_files import read_costs
from schedcc.io.plan_files import explain, read_plan
from schedcc.schedules import SCHEDULES
from schedcc.schedules.schedule import Overlap as Variant
from schemas import Costs, PipelinePlan, StagePlan, TransportModel
from schemas.transport import Queues

File = Annotated[
    Path | None,
    typer.Argument(help="Plan file (or CSV), or - for standard input; or give -M and -S."),
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="File to write; default: standard output.")
]
MicroBatches = Annotated[
    int | None, typer.Option("--micro-batches", "-M", help="M, the number of micro-batches.")
]
Stages = Annotated[int | None, typer.Option("--stages", "-S", help="S, the number of stages.")]
ScheduleName = Annotated[
    str,
    typer.Option(
        "--schedule",
        help=f"One of {', '.join(known.name for known in SCHEDULES)}; schedcc schedules has more.",
    ),
]
Ranks = Annotated[
    int | None,
    typer.Option("--ranks", "-R", help="R, the number of ranks; default: one for each stage."),
]
StageId = Annotated[int | None, typer.Option("--stage-id", help="Only this stage, 0 to S - 1.")]
Overlap = Annotated[
    bool, typer.Option("--overlap", help="Split transfers, so that they cross the forwards.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

Queue = Annotated[
    Queues,
    typer.Option(help="Transfers end in issue order per stage, or only per channel."),
]
QueueOrDefault = Annotated[
    Queues | None,
    typer.Option(
        "--queue",
        help="Transfers end in issue order per stage, or only per channel; default: stage, and "
        "channel for schedules side by side.",
    ),
]
BufferedSends = Annotated[
    int, typer.Option(help="Messages of a channel that may wait for their receive.")
]
StepBarrier = Annotated[
    bool, typer.Option("--step-barrier", help="All stages meet after each step.")
]

DEFAULT_SCHEDULE = "inference"

Forward = Annotated[
    str | None,
    typer.Option(
        help="Seconds of a forward, default 1: one number, or one for each stage (1,1,2)."
    ),
]
Transfer = Annotated[
    str | None,
    typer.Option(help="Seconds of a transfer, or its latency: one number, or one for each edge."),
]
ActivationBytes = Annotated[int | None, typer.Option(help="Bytes of one activation.")]
Bandwidth = Annotated[float | None, typer.Option(help="Bytes per second between neighbours.")]
CostsFile = Annotated[
    Path | None,
    typer.Option(
        "--costs",
        help="JSON file of all costs (schemas/json/costs.schema.json); the options for single "
        "costs override it.",
    ),
]


def variant_for(overlap: bool, queue: Queues) -> Variant:
    """What --overlap and --queue ask the compiler for."""
    return "channel" if overlap and queue == "channel" else overlap


class Wanted(NamedTuple):
    """The plan that -M, -S and their companions ask for; by default none."""

    micro_batches: int | None = None
    stages: int | None = None
    overlap: Variant = False
    schedule: str = DEFAULT_SCHEDULE
    ranks: int | None = None
    stage_id: int | None = None


def compiled(wanted: Wanted, instead: str = "") -> PipelinePlan | StagePlan:
    """That plan; `instead` as in `required_sizes`."""
    micro_batches, stages, overlap, schedule, ranks, stage_id = wanted
    micro_batches, stages = required_sizes(micro_batches, stages, instead)
    if stage_id is None:
        return compile_pipeline(
            micro_batches, stages, schedule=schedule, ranks=ranks, overlap=overlap
        )
    if ranks not in (None, stages):
        raise ScheduleError(f"--stage-id is for one stage on each rank, found --ranks {ranks}")
    return compile_stage(micro_batches, stages, stage_id, schedule=schedule, overlap=overlap)


def required_sizes(
    micro_batches: int | None, stages: int | None, instead: str = ""
) -> tuple[int, int]:
    """M and S, which have to be given.

    Args:
        micro_batches: M, if it was given.
        stages: S, if it was given.
        instead: What could have been given in place of both, for the message.

    Raises:
        ValueError: one is missing.
    """
    if micro_batches is not None and stages is not None:
        return micro_batches, stages
    sizes = "the numbers of micro-batches and stages, such as -M 8 -S 4"
    nothing = micro_batches is None and stages is None
    raise ValueError(f"needed {instead if nothing else ''}{sizes}")


PLAN_FILE = "a plan file, or "
"""What commands take instead of -M and -S."""


def read_or_compiled(file: Path | None, wanted: Wanted) -> PipelinePlan | StagePlan:
    """The plan in a file, or the one that is wanted."""
    if file is None:
        return compiled(wanted, instead=PLAN_FILE)
    if wanted != Wanted():
        raise ValueError("needed a plan file or -M and -S, not both")
    return read_plan(file)


def pipeline_plan(file: Path | None, wanted: Wanted) -> PipelinePlan:
    """`read_or_compiled`, of a whole pipeline.

    Raises:
        ValueError: it is of one stage.
    """
    plan = read_or_compiled(file, wanted)
    if isinstance(plan, StagePlan):
        found = f"the plan of {plan.unit} {plan.rank} alone"
        prefix = "" if file is None else f"{shown(file)}: "
        raise ValueError(f"{prefix}{found}, needed all {plan.unit}s")
    return plan


def transport_model(
    queue: Queues, buffered_sends: int, step_barrier: bool = False
) -> TransportModel:
    """The transport that the options describe."""
    try:
        return TransportModel(queue=queue, buffered_sends=buffered_sends, step_barrier=step_barrier)
    except ValidationError as error:
        raise ValueError(explain(error)) from error


def cost_model(
    file: Path | None,
    forward: str | None,
    transfer: str | None,
    activation_bytes: int | None,
    bandwidth: float | None,
) -> Costs:
    """The costs in a file, with what the options say in place of what it says."""
    costs = Costs() if file is None else read_costs(file)
    given = {
        "forward": None if forward is None else _forwards(forward),
        "transfer": None if transfer is None else _numbers("--transfer", transfer),
        "activation_bytes": activation_bytes,
        "bandwidth": bandwidth,
    }
    known = {name: value for name, value in given.items() if value is not None}
    try:
        return Costs(**{**dict(costs), **known})
    except ValidationError as error:
        raise ValueError(explain(error)) from error


def _forwards(text: str) -> float | tuple[float, ...]:
    seconds = _numbers("--forward", text)
    each = seconds if isinstance(seconds, tuple) else (seconds,)
    if not all(0 <= number < math.inf for number in each):
        raise _no_seconds("--forward", text)
    return seconds


def _numbers(option: str, text: str) -> float | tuple[float, ...]:
    try:
        seconds = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise _no_seconds(option, text) from None
    return seconds[0] if len(seconds) == 1 else seconds


def _no_seconds(option: str, text: str) -> ValueError:
    return ValueError(f"{option} is {text!r}, needed seconds such as 1 or 0.5,0.5,2")
