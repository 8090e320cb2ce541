"""The epilogue: what happens to the results once all micro-batches are through.

==================  ===========================  ==================================
instruction         ranks                        wanted when
==================  ===========================  ==================================
`ReduceLoss`        last                         a loss is computed
`AllReduceLoss`     last                         ... reduced, and there are replicas
`ComputeMetrics`    last                         there are metrics with a state,
`AllReduceMetrics`  last                         ... and replicas
`BroadcastLoss`     all, if there are several    ... and every rank is to know it
`CollectLogits`     last                         logits are asked for there,
`MoveLogits`        last and first               ... on the first rank,
`BroadcastLogits`   all                          ... or on every rank
==================  ===========================  ==================================

The first and the last rank are those of the first and the last stage. Where they are one, what is
asked for on either is there without being moved.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from schedcc.errors import ScheduleError, require_count
from schemas import (
    AllReduceLoss,
    AllReduceMetrics,
    BroadcastLogits,
    BroadcastLoss,
    CollectLogits,
    ComputeMetrics,
    EpilogueInstruction,
    LogitsTo,
    MoveLogits,
    ReduceLoss,
    ReduceOutput,
)


@dataclass(frozen=True)
class Outcome:
    """What a caller wants from an evaluation; the names are those of DeepSpeed's `eval_batch`."""

    compute_loss: bool = True
    """Compute the loss of each micro-batch."""
    reduce_output: ReduceOutput | None = "avg"
    """Reduce the losses to their weighted average, their sum, or their mean without weights (which
    is DeepSpeed's `"avg"`), or leave them as they are."""
    bcast_loss: bool = True
    """Hand the loss to every rank, not only to that of the last stage."""
    return_logits: bool = False
    """Hand out the logits of every micro-batch."""
    logits_to: LogitsTo = "last"
    """The rank of the last or of the first stage, or all ranks, get the logits."""
    compute_metrics: bool = False
    """Compute metrics that have a state."""
    replicas: int = 1
    """Data-parallel copies of the pipeline."""

    def __post_init__(self) -> None:
        if self.reduce_output not in (*get_args(ReduceOutput), None):
            choices = ", ".join(map(repr, get_args(ReduceOutput)))
            raise ScheduleError(
                f"reduce_output is {self.reduce_output!r}, needed {choices} or None"
            )
        if self.logits_to not in get_args(LogitsTo):
            *others, last = map(repr, get_args(LogitsTo))
            raise ScheduleError(
                f"logits_to is {self.logits_to!r}, needed {', '.join(others)} or {last}"
            )
        require_count("replicas", self.replicas)


def epilogues(
    placement: Sequence[int], outcome: Outcome
) -> tuple[tuple[EpilogueInstruction, ...], ...]:
    """The epilogues of all ranks; those between the first and the last are alike."""
    ranks = max(placement) + 1
    ends = {placement[0], placement[-1]}
    between = next((rank for rank in range(ranks) if rank not in ends), ranks - 1)
    found = {rank: epilogue(placement, rank, outcome) for rank in {*ends, between}}
    return tuple(found[rank if rank in ends else between] for rank in range(ranks))


def epilogue(
    placement: Sequence[int], rank: int, outcome: Outcome
) -> tuple[EpilogueInstruction, ...]:
    """The epilogue of a rank.

    Args:
        placement: The rank of each stage.
        rank: The rank.
        outcome: What is wanted.
    """
    last, alone = rank == placement[-1], max(placement) == 0
    source = len(placement) - 1
    instructions: list[EpilogueInstruction] = []
    if outcome.compute_loss and last:
        instructions.append(ReduceLoss(reduction=outcome.reduce_output or "none"))
        if outcome.reduce_output is not None and outcome.replicas > 1:
            instructions.append(AllReduceLoss())
    if outcome.compute_metrics and last:
        instructions.append(AllReduceMetrics() if outcome.replicas > 1 else ComputeMetrics())
    if outcome.compute_loss and outcome.bcast_loss and not alone:
        instructions.append(BroadcastLoss(source=source))
    if outcome.return_logits:
        instructions += _logits(placement, rank, outcome.logits_to)
    return tuple(instructions)


def _logits(
    placement: Sequence[int], rank: int, destination: LogitsTo
) -> list[EpilogueInstruction]:
    first, last, source = placement[0], placement[-1], len(placement) - 1
    if destination == "all" and max(placement) > 0:
        return [BroadcastLogits(source=source)]
    if destination == "first" and first != last:
        return [MoveLogits(source=source, destination=0)] if rank in (first, last) else []
    return [CollectLogits()] if rank == last else []
