"""The epilogue: what happens to the results once all micro-batches are through.

==================  ===========================  ==================================
instruction         stages                       wanted when
==================  ===========================  ==================================
`ReduceLoss`        last                         a loss is computed
`AllReduceLoss`     last                         ... reduced, and there are replicas
`ComputeMetrics`    last                         there are metrics with a state,
`AllReduceMetrics`  last                         ... and replicas
`BroadcastLoss`     all, if there are several    ... and every stage is to know it
`CollectLogits`     last                         logits are asked for there,
`MoveLogits`        last and first               ... on the first stage,
`BroadcastLogits`   all                          ... or on every stage
==================  ===========================  ==================================
"""

from dataclasses import dataclass
from typing import Literal, get_args

from schedcc.errors import ScheduleError, require_count
from schemas import (
    AllReduceLoss,
    AllReduceMetrics,
    BroadcastLogits,
    BroadcastLoss,
    CollectLogits,
    ComputeMetrics,
    EpilogueInstruction,
    MoveLogits,
    ReduceLoss,
)

ReduceOutput = Literal["avg", "sum", "mean_of_means"]
LogitsTo = Literal["last", "first", "all"]


@dataclass(frozen=True)
class Outcome:
    """What a caller wants from an evaluation; the names are those of DeepSpeed's `eval_batch`."""

    compute_loss: bool = True
    """Compute the loss of each micro-batch."""
    reduce_output: ReduceOutput | None = "avg"
    """Reduce the losses to their weighted average, their sum, or their mean without weights (which
    is DeepSpeed's `"avg"`), or leave them as they are."""
    bcast_loss: bool = True
    """Hand the loss to every stage, not only to the last."""
    return_logits: bool = False
    """Hand out the logits of every micro-batch."""
    logits_to: LogitsTo = "last"
    """The stages that get the logits."""
    compute_metrics: bool = False
    """Compute metrics that have a state."""
    replicas: int = 1
    """Data-parallel copies of the pipeline."""

    def __post_init__(self) -> None:
        if self.reduce_output not in (*get_args(ReduceOutput), None):
            needed = "needed 'avg', 'sum', 'mean_of_means' or None"
            raise ScheduleError(f"reduce_output is {self.reduce_output!r}, {needed}")
        if self.logits_to not in get_args(LogitsTo):
            needed = "needed 'last', 'first' or 'all'"
            raise ScheduleError(f"logits_to is {self.logits_to!r}, {needed}")
        require_count("replicas", self.replicas)


def epilogue(stages: int, stage_id: int, outcome: Outcome) -> tuple[EpilogueInstruction, ...]:
    """The epilogue of stage `stage_id` of `stages`."""
    last = stage_id == stages - 1
    instructions: list[EpilogueInstruction] = []
    if outcome.compute_loss and last:
        instructions.append(ReduceLoss(reduction=outcome.reduce_output or "none"))
        if outcome.reduce_output is not None and outcome.replicas > 1:
            instructions.append(AllReduceLoss())
    if outcome.compute_metrics and last:
        instructions.append(AllReduceMetrics() if outcome.replicas > 1 else ComputeMetrics())
    if outcome.compute_loss and outcome.bcast_loss and stages > 1:
        instructions.append(BroadcastLoss(source=stages - 1))
    if outcome.return_logits:
        instructions += _logits(stages, stage_id, outcome.logits_to)
    return tuple(instructions)


def _logits(stages: int, stage_id: int, destination: LogitsTo) -> list[EpilogueInstruction]:
    last = stages - 1
    if destination == "all" and stages > 1:
        return [BroadcastLogits(source=last)]
    if destination == "first" and stages > 1:
        return [MoveLogits(source=last, destination=0)] if stage_id in (0, last) else []
    return [CollectLogits()] if stage_id == last else []
