"""Options of an evaluation: what a caller wants of it, from `eval_batch` down to the epilogue."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

import torch

from schemas import LogitsTo, ReduceOutput

LogitsCallback = Callable[[int, Any], None]
"""`(micro_batch, logits)`."""

LogitsFunction = Callable[[Any, Any], Any]
"""`(output, label) -> what is handed out in place of the output`."""


class EvalKeywords(TypedDict, total=False):
    """The options as keyword arguments, see `EvalOptions`."""

    return_logits: bool
    compute_loss: bool
    reduce_output: ReduceOutput | None
    bcast_loss: bool
    logits_to: LogitsTo
    logits_device: torch.device | str | None
    on_logits: LogitsCallback | None
    logits_fn: LogitsFunction | None


@dataclass(frozen=True)
class EvalOptions:
    """What a caller wants of an evaluation; the names are those of `Evaluator.eval_batch`."""

    return_logits: bool = False
    compute_loss: bool = True
    reduce_output: ReduceOutput | None = "avg"
    bcast_loss: bool = True
    logits_to: LogitsTo = "last"
    logits_device: torch.device | str | None = None
    on_logits: LogitsCallback | None = None
    logits_fn: LogitsFunction | None = None

    @property
    def needs_labels(self) -> bool:
        """Whether anything is computed from labels."""
        return self.compute_loss or self.logits_fn is not None

    @property
    def logits_in_epilogue(self) -> bool:
        """Whether logits are handed out at the end of a run, by an instruction of its plan.

        A callback on the last stage gets them as they come, and needs none.
        """
        return self.return_logits or (self.on_logits is not None and self.logits_to != "last")
