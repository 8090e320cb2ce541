"""The instructions of the epilogue: what happens to results once all micro-batches are through."""

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from schemas.base import Frozen, Id
from schemas.instruction_set.effects import Position

ReduceOutput = Literal["avg", "sum", "mean_of_means"]
"""What losses can be reduced to, see `ReduceLoss`."""
Reduction = Literal[ReduceOutput, "none"]
LogitsTo = Literal["last", "first", "all"]
"""The stages that can get logits."""


class BaseInstruction(Frozen):
    """What all instructions share."""

    op: str = Field(repr=False)

    position: ClassVar[Position] = Position.ANY
    """The stages on which the instruction makes sense."""


class ResultInstruction(BaseInstruction):
    """An instruction of the epilogue: it runs once, on the results of all micro-batches."""

    needs: ClassVar[tuple["ResultInstruction", ...]] = ()
    """Of these instructions, one must precede this one in the epilogue of the last stage's rank."""
    precedes: ClassVar[tuple[str, ...]] = ()
    """Instructions that hand out what this one changes, and so must not come before it."""
    gives: ClassVar[str | None] = None
    """What it hands out to the caller; an epilogue does so once, by whichever instruction."""
    over_replicas: ClassVar[bool] = False
    """Whether a rank executes the instruction together with its likes in the other replicas."""

    def __str__(self) -> str:
        return repr(self)


class HandOver(ResultInstruction):
    """An instruction that hands results of the stage `source` to other ranks."""

    source: Id

    def members(self, ranks: int, rank_of: Callable[[int], int]) -> range:  # noqa: ARG002
        """The ranks that execute the instruction together: all of the pipeline.

        Args:
            ranks: The number of ranks.
            rank_of: The rank of a stage.
        """
        return range(ranks)


class ReduceLoss(ResultInstruction):
    """Reduce the losses of the M micro-batches, and the metrics that are functions likewise.

    To their weighted average, their sum, or their mean without weights; or keep them as they are.
    """

    op: Literal["ReduceLoss"] = Field(default="ReduceLoss", repr=False)
    reduction: Reduction = "avg"
    position = Position.LAST


REDUCED = tuple(ReduceLoss(reduction=kind) for kind in get_args(ReduceOutput))
KEPT = ReduceLoss(reduction="none")


class AllReduceLoss(ResultInstruction):
    """Extend the reduced loss over the data-parallel replicas, weighted like `ReduceLoss`."""

    op: Literal["AllReduceLoss"] = Field(default="AllReduceLoss", repr=False)
    position = Position.LAST
    needs = REDUCED
    precedes = ("BroadcastLoss",)
    over_replicas = True


class ComputeMetrics(ResultInstruction):
    """Compute the metrics that have a state."""

    op: Literal["ComputeMetrics"] = Field(default="ComputeMetrics", repr=False)
    position = Position.LAST
    precedes = ("BroadcastLoss",)
    gives = "metrics"


class AllReduceMetrics(ResultInstruction):
    """Compute the metrics that have a state from the states of all data-parallel replicas."""

    op: Literal["AllReduceMetrics"] = Field(default="AllReduceMetrics", repr=False)
    position = Position.LAST
    precedes = ("BroadcastLoss",)
    gives = "metrics"
    over_replicas = True


class BroadcastLoss(HandOver):
    """Hand loss, losses and metrics of the stage `source` to every rank; all take part."""

    op: Literal["BroadcastLoss"] = Field(default="BroadcastLoss", repr=False)
    needs = (*REDUCED, KEPT)


class CollectLogits(ResultInstruction):
    """Hand out the outputs of all micro-batches, in their order, on the rank that has them."""

    op: Literal["CollectLogits"] = Field(default="CollectLogits", repr=False)
    position = Position.LAST
    gives = "logits"


class MoveLogits(HandOver):
    """Hand the outputs of all micro-batches, in order, to the rank of the stage `destination`."""

    op: Literal["MoveLogits"] = Field(default="MoveLogits", repr=False)
    destination: Id
    gives = "logits"

    def members(self, ranks: int, rank_of: Callable[[int], int]) -> range:  # noqa: ARG002
        """The ranks of both stages."""
        first, last = sorted((rank_of(self.source), rank_of(self.destination)))
        return range(first, last + 1, max(1, last - first))


class BroadcastLogits(HandOver):
    """Hand the outputs of all micro-batches, in their order, from stage `source` to every rank."""

    op: Literal["BroadcastLogits"] = Field(default="BroadcastLogits", repr=False)
    gives = "logits"


Epilogue = (
    ReduceLoss
    | AllReduceLoss
    | ComputeMetrics
    | AllReduceMetrics
    | BroadcastLoss
    | CollectLogits
    | MoveLogits
    | BroadcastLogits
)
EpilogueInstruction = Annotated[Epilogue, Field(discriminator="op")]
