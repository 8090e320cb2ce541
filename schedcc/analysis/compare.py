"""Evaluation beside training: what the same M and S cost in steps, buffers and idle time."""

from schedcc.analysis.compiled import compiled_table
from schedcc.analysis.simulate import prediction
from schemas import Costs, TransportModel
from schemas.timeline import ComparedSchedule, Comparison


def compare(
    micro_batches: int,
    stages: int,
    costs: Costs | None = None,
    transport: TransportModel | None = None,
) -> Comparison:
    """Compare the blocking and the overlapped inference schedule with 1F1B training.

    1F1B (one forward, one backward; Narayanan et al., "PipeDream", 2019; as in DeepSpeed's
    `TrainSchedule`) takes `2 (M + S - 1)` steps, a forward or a backward each, and keeps
    `min(S - s, M)` micro-batches on stage `s`. The idle fraction of equal stages is
    `(S - 1) / (M + S - 1)` for all three.

    Raises:
        ScheduleError: `micro_batches` or `stages` is no integer of at least 1.
        ValueError: there are costs for another number of stages.
    """
    costs, transport = costs or Costs(), transport or TransportModel()
    compared = []
    for name, overlap in (("evaluation, blocking", False), ("evaluation, overlapped", True)):
        table = compiled_table(micro_batches, stages, overlap=overlap)
        predicted = prediction(table, costs, transport)
        compared.append(
            ComparedSchedule(
                name=name,
                steps=micro_batches + stages - 1,
                buffers=str(table.num_buffers),
                ideal_bubble=predicted.ideal_bubble,
                makespan=predicted.makespan,
                bubble=predicted.bubble,
            )
        )
    return Comparison(
        micro_batches=micro_batches,
        stages=stages,
        costs=costs,
        transport=transport,
        schedules=(*compared, _training(micro_batches, stages)),
    )


def _training(micro_batches: int, stages: int) -> ComparedSchedule:
    most, fewest = min(stages, micro_batches), 1
    steps = micro_batches + stages - 1
    return ComparedSchedule(
        name="training, 1F1B",
        steps=2 * steps,
        buffers=str(most) if most == fewest else f"{most} down to {fewest}",
        ideal_bubble=(stages - 1) / steps,
        makespan=None,
        bubble=None,
    )
