"""The schedules side by side: what the same model costs on the same ranks under each of them.

Every rank has its share of the layers, which takes `Costs.forward` seconds for one micro-batch; a
schedule with `v` stages on a rank cuts the share into `v` equal parts. A transfer costs the same
wherever the model is cut.
"""

from collections.abc import Callable, Iterator, Sequence

from schedcc.compiler import compile_pipeline
from schedcc.schedules import SCHEDULES, Schedule
from schedcc.schedules.schedule import Overlap, first_allowed
from schedcc.simulation.simulate import prediction
from schedcc.table.codes import IS_SEND, IS_TRANSFER
from schemas import Costs, PipelinePlan, TransportModel
from schemas.base import Frozen
from schemas.costs import Seconds


class ScheduleFigures(Frozen):
    """What one variant of a schedule costs."""

    schedule: str
    overlap: bool
    stages: int
    """S, of all ranks."""
    steps: int
    makespan: Seconds
    """From the first start to the last end, as `simulate` predicts it."""
    bubble: float
    """The fraction of the ranks' time without a forward."""
    buffers: int
    """Of a rank: those of all its stages."""
    peak_bytes: int
    """The most bytes of activations that a rank holds for its transfers."""
    messages: int
    """Sent by all ranks together."""

    @property
    def name(self) -> str:
        """The schedule and the variant."""
        return variant_name(self.schedule, self.overlap)


class SideBySide(Frozen):
    """The figures of all schedules for the same data, ranks and costs."""

    micro_batches: int
    """M."""
    ranks: int
    """R."""
    costs: Costs
    """`forward` is that of a rank's share of the layers."""
    transport: TransportModel
    schedules: tuple[ScheduleFigures, ...]
    best: str
    """The name of the fastest; of equally fast ones, that which holds the fewest bytes, then that
    which sends the fewest messages."""

    def __str__(self) -> str:
        rows = [("", *(title for title, _ in _COLUMNS))]
        rows += [(f.name, *(form(f) for _, form in _COLUMNS)) for f in self.schedules]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
            for row in rows
        )
        return "\n".join([*lines, f"best: {self.best}"])


_COLUMNS: tuple[tuple[str, Callable[[ScheduleFigures], str]], ...] = (
    ("stages", lambda figures: str(figures.stages)),
    ("steps", lambda figures: str(figures.steps)),
    ("seconds", lambda figures: f"{figures.makespan:.6g}"),
    ("bubble", lambda figures: f"{figures.bubble:.1%}"),
    ("buffers of a rank", lambda figures: str(figures.buffers)),
    ("peak bytes", lambda figures: str(figures.peak_bytes)),
    ("messages", lambda figures: str(figures.messages)),
)


def side_by_side(
    micro_batches: int,
    ranks: int,
    costs: Costs | None = None,
    transport: TransportModel | None = None,
    *,
    held: int = 2,
    schedules: Sequence[Schedule] = SCHEDULES,
) -> SideBySide:
    """Compile and simulate every schedule, in both variants, on the same ranks.

    Args:
        micro_batches: M.
        ranks: R.
        costs: Seconds; `forward` is that of a rank's whole share. Default: 1 a share.
        transport: What transfers wait for; default: a queue for each channel, as the runtime has it
            between CPUs, and everywhere where channels lead around in a circle.
        held: Stages of a rank, for schedules that leave the number open; others have their own.
        schedules: Those to compare; default: all that ship.

    Raises:
        ScheduleError: a number is no integer of at least 1, or a schedule does not exist for any
            number of stages up to `held` on R ranks.
        ValueError: there are costs for each stage, which are others in each schedule.
    """
    costs, transport = costs or Costs(), transport or TransportModel(queue="channel")
    figures = [
        _figures(plan, overlap, each, transport)
        for plan, overlap, each in variants(micro_batches, ranks, costs, transport, held, schedules)
    ]
    best = min(figures, key=lambda f: (round(f.makespan, 9), f.peak_bytes, f.messages))
    return SideBySide(
        micro_batches=micro_batches,
        ranks=ranks,
        costs=costs,
        transport=transport,
        schedules=tuple(figures),
        best=best.name,
    )


def variants(
    micro_batches: int,
    ranks: int,
    costs: Costs,
    transport: TransportModel,
    held: int = 2,
    schedules: Sequence[Schedule] = SCHEDULES,
) -> Iterator[tuple[PipelinePlan, bool, Costs]]:
    """The plan of every schedule in both variants, whether it is overlapped, and its own costs.

    The arguments, and what is raised, are those of `side_by_side`.
    """
    if isinstance(costs.forward, tuple):
        raise ValueError(
            f"forward lists {len(costs.forward)} costs, needed one number: the seconds of a rank's "
            "share of the layers, which each schedule cuts into its own stages"
        )
    overlapped: Overlap = "channel" if transport.queue == "channel" else True
    for schedule in schedules:
        for overlap in (False, overlapped):
            plan = _compiled(schedule, micro_batches, ranks, held, overlap)
            each = costs.forward / (plan.stages // plan.ranks)
            yield plan, bool(overlap), costs.model_copy(update={"forward": each})


def variant_name(schedule: str, overlap: bool) -> str:
    """The schedule and the variant."""
    return f"{schedule}, {'overlapped' if overlap else 'blocking'}"


def _compiled(
    schedule: Schedule, micro_batches: int, ranks: int, held: int, overlap: Overlap
) -> PipelinePlan:
    """The plan with `held` stages on each rank, or with the number that the schedule needs."""
    stages = first_allowed(schedule, ranks, _numbers(held))
    return compile_pipeline(micro_batches, stages, schedule=schedule, ranks=ranks, overlap=overlap)


def _numbers(held: int) -> Iterator[int]:
    yield held
    yield from (each for each in range(1, max(held, 2) + 1) if each != held)


def _figures(
    plan: PipelinePlan, overlap: bool, costs: Costs, transport: TransportModel
) -> ScheduleFigures:
    predicted = prediction(plan, costs, transport)
    return ScheduleFigures(
        schedule=plan.schedule,
        overlap=overlap,
        stages=plan.stages,
        steps=len(plan.programs[0].steps),
        makespan=predicted.makespan,
        bubble=predicted.bubble,
        buffers=plan.stages // plan.ranks * plan.num_buffers,
        peak_bytes=max(predicted.held) * costs.activation_bytes,
        messages=int((IS_SEND & IS_TRANSFER)[predicted.table.rows.op].sum()),
    )
