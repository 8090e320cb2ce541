"""Evaluation beside training: what the same M and S cost in steps, buffers and idle time."""

from schedcc.compiler import required
from schedcc.schedules import Schedule
from schedcc.simulation.compiled import compiled_table
from schedcc.simulation.simulate import prediction
from schemas import Costs, TransportModel
from schemas.reports.timeline import ComparedSchedule, Comparison


def compare(
    micro_batches: int,
    stages: int,
    costs: Costs | None = None,
    transport: TransportModel | None = None,
    *,
    schedule: str | Schedule = "inference",
    ranks: int | None = None,
) -> Comparison:
    """Compare the blocking and the overlapped variant of a schedule with 1F1B training.

    1F1B (one forward, one backward; Narayanan et al., "PipeDream", 2019; as in DeepSpeed's
    `TrainSchedule`) has one stage on each of R ranks, takes `2 (M + R - 1)` steps, a forward or a
    backward each, and keeps `min(R - r, M)` micro-batches on rank `r`. The idle fraction of equal
    stages is `(R - 1) / (M + R - 1)`, as that of the inference schedule on as many ranks.

    Args:
        micro_batches: M.
        stages: S.
        costs: Seconds of everything.
        transport: What transfers wait for.
        schedule: The name of a schedule, or a value.
        ranks: R; default: one for each stage.

    Raises:
        ScheduleError: an argument is out of range, or the schedule makes no sense.
        ValueError: there are costs for another number of stages.
    """
    value, ranks = required(micro_batches, stages, schedule, ranks)
    costs, transport = costs or Costs(), transport or TransportModel()
    compared = []
    for name, overlap in (("evaluation, blocking", False), ("evaluation, overlapped", True)):
        table = compiled_table(
            micro_batches,
            stages,
            schedule=value,
            ranks=ranks,
            overlap=overlap,
            transport=transport,
        )
        predicted = prediction(table, costs, transport)
        compared.append(
            ComparedSchedule(
                name=name,
                steps=int(table.rows.step.max(initial=-1)) + 1,
                buffers=str(table.num_buffers),
                ideal_bubble=predicted.ideal_bubble,
                makespan=predicted.makespan,
                bubble=predicted.bubble,
            )
        )
    return Comparison(
        micro_batches=micro_batches,
        stages=stages,
        ranks=ranks,
        schedule=value.name,
        costs=costs,
        transport=transport,
        schedules=(*compared, _training(micro_batches, ranks)),
    )


def _training(micro_batches: int, ranks: int) -> ComparedSchedule:
    most, fewest = min(ranks, micro_batches), 1
    steps = micro_batches + ranks - 1
    return ComparedSchedule(
        name="training, 1F1B",
        steps=2 * steps,
        buffers=str(most) if most == fewest else f"{most} down to {fewest}",
        ideal_bubble=(ranks - 1) / steps,
        makespan=None,
        bubble=None,
    )
