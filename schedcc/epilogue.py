"""The epilogue: what happens to the results once all micro-batches are through.

==================  ===========================  ==================================
instruction         stages                       wanted when
==================  ===========================  ==================================
`ReduceLoss`        last                         a loss is computed
`AllReduceLoss`     last                         ... reduced, and there are replicas
`BroadcastLoss`     all, if there are several    ... and every stage is to know it
`CollectLogits`     last                         logits are asked for
==================  ===========================  ==================================
"""

from dataclasses import dataclass
from typing import Literal

from schedcc.errors import ScheduleError, require_count
from schemas import AllReduceLoss, BroadcastLoss, CollectLogits, EpilogueInstruction, ReduceLoss


@dataclass(frozen=True)
class Outcome:
    """What a caller wants from an evaluation; the names are those of DeepSpeed's `eval_batch`."""

    compute_loss: bool = True
    """Compute the loss of each micro-batch."""
    reduce_output: Literal["avg"] | None = "avg"
    """Reduce the losses to their weighted average, or leave them as they are."""
    bcast_loss: bool = True
    """Hand the loss to every stage, not only to the last."""
    return_logits: bool = False
    """Hand out the logits of every micro-batch on the last stage."""
    replicas: int = 1
    """Data-parallel copies of the pipeline."""

    def __post_init__(self) -> None:
        if self.reduce_output not in ("avg", None):
            raise ScheduleError(f"reduce_output is {self.reduce_output!r}, needed 'avg' or None")
        require_count("replicas", self.replicas)


def epilogue(stages: int, stage_id: int, outcome: Outcome) -> tuple[EpilogueInstruction, ...]:
    """The epilogue of stage `stage_id` of `stages`."""
    last = stage_id == stages - 1
    average = outcome.reduce_output == "avg"
    instructions: list[EpilogueInstruction] = []
    if outcome.compute_loss and last:
        instructions.append(ReduceLoss(reduction="avg" if average else "none"))
    if outcome.compute_loss and last and average and outcome.replicas > 1:
        instructions.append(AllReduceLoss())
    if outcome.compute_loss and outcome.bcast_loss and stages > 1:
        instructions.append(BroadcastLoss(source=stages - 1))
    if outcome.return_logits and last:
        instructions.append(CollectLogits())
    return tuple(instructions)
