"""Options of an evaluation: what a caller wants of it, from `eval_batch` down to the epilogue."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

import torch

from schedcc import Outcome
from schedcc.errors import ScheduleError
from schedcc.schedules.epilogue import LogitsTo, ReduceOutput

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

    def __post_init__(self) -> None:
        """Refuse options of logits that nobody is to get.

        Raises:
            ScheduleError: naming the first of them.
        """
        if self.return_logits or self.on_logits is not None:
            return
        asked = {
            "logits_to": None if self.logits_to == "last" else self.logits_to,
            "logits_device": self.logits_device,
        }
        for name, value in asked.items():
            if value is not None:
                raise ScheduleError(
                    f"{name} is {value!r}, but nobody gets logits: needed return_logits=True or "
                    "an on_logits"
                )

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

    def outcome(self, *, replicas: int, compute_metrics: bool) -> Outcome:
        """What the last run of the evaluation delivers."""
        return Outcome(
            compute_loss=self.compute_loss,
            reduce_output=self.reduce_output,
            bcast_loss=self.bcast_loss,
            return_logits=self.logits_in_epilogue,
            logits_to=self.logits_to,
            compute_metrics=self.compute_loss and compute_metrics,
            replicas=replicas,
        )
