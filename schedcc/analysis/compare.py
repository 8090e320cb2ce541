"""Evaluation beside training: what the same M and S cost in steps, buffers and idle time."""

from dataclasses import dataclass

from schedcc.analysis.simulate import simulate
from schedcc.compiler import compile_pipeline
from schemas import Costs, Timeline, TransportModel


@dataclass(frozen=True)
class Column:
    """One schedule's figures."""

    name: str
    steps: int
    buffers: str
    """Buffers of a stage, from the first stage to the last."""
    ideal_bubble: float
    """Idle fraction with equal stages, without transfers."""
    timeline: Timeline | None
    """`None` for a schedule that is not compiled here."""


def compare(
    micro_batches: int,
    stages: int,
    costs: Costs | None = None,
    transport: TransportModel | None = None,
) -> tuple[Column, ...]:
    """Compare the blocking and the overlapped inference schedule with 1F1B training.

    1F1B (one forward, one backward; Narayanan et al., "PipeDream", 2019; as in DeepSpeed's
    `TrainSchedule`) takes `2 (M + S - 1)` steps, a forward or a backward each, and keeps
    `min(S - s, M)` micro-batches on stage `s`. The idle fraction of equal stages is
    `(S - 1) / (M + S - 1)` for all three.

    Raises:
        ScheduleError: `micro_batches` or `stages` is no integer of at least 1.
        ValueError: there are costs for another number of stages.
    """
    steps = micro_batches + stages - 1
    columns = []
    for name, overlap in (("evaluation, blocking", False), ("evaluation, overlapped", True)):
        plan = compile_pipeline(micro_batches, stages, overlap=overlap)
        timeline = simulate(plan, costs, transport)
        buffers = str(plan.num_buffers)
        columns.append(Column(name, steps, buffers, timeline.ideal_bubble, timeline))
    kept = sorted({min(stages - stage, micro_batches) for stage in range(stages)}, reverse=True)
    buffers = str(kept[0]) if len(kept) == 1 else f"{kept[0]} down to {kept[-1]}"
    training = Column("training, 1F1B", 2 * steps, buffers, (stages - 1) / steps, None)
    return (*columns, training)
