"""A request: what a caller wants of an evaluation, and so of the runs that it takes."""

from dataclasses import dataclass, replace

import torch

from runtime.outputs.logits import LogitsCallback, LogitsFunction, LogitsWish
from schedcc import Outcome
from schedcc.errors import ScheduleError
from schedcc.schedules.epilogue import LogitsTo, ReduceOutput


@dataclass(frozen=True)
class Request:
    """What a caller wants of an evaluation; the names are those of `Evaluator.eval_batch`."""

    compute_loss: bool = True
    reduce_output: ReduceOutput | None = "avg"
    bcast_loss: bool = True
    return_logits: bool = False
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
    def wish(self) -> LogitsWish:
        """What becomes of the logits."""
        return LogitsWish(
            keep=self.return_logits,
            at_the_end=self._hands_logits_over,
            device=None if self.logits_device is None else torch.device(self.logits_device),
            callback=self.on_logits,
        )

    def outcome(self, *, replicas: int, compute_metrics: bool) -> Outcome:
        """What the last run of the evaluation delivers."""
        return Outcome(
            compute_loss=self.compute_loss,
            reduce_output=self.reduce_output,
            bcast_loss=self.bcast_loss,
            return_logits=self._hands_logits_over,
            logits_to=self.logits_to,
            compute_metrics=self.compute_loss and compute_metrics,
            replicas=replicas,
        )

    @property
    def _hands_logits_over(self) -> bool:
        # On the last stage a callback gets them as they come, and no instruction is needed.
        return self.return_logits or (self.on_logits is not None and self.logits_to != "last")


def part_of(outcome: Outcome) -> Outcome:
    """What a run delivers that others follow: no more than the logits so far."""
    return replace(outcome, compute_loss=False, compute_metrics=False)
