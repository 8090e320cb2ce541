"""The outcome that the plans of an evaluation deliver, from what the caller wants."""

from dataclasses import replace

from runtime.outputs.options import EvalOptions
from schedcc import Outcome
from schedcc.errors import ScheduleError


def outcome_of(options: EvalOptions, *, replicas: int, compute_metrics: bool) -> Outcome:
    """What the last run of an evaluation delivers.

    Args:
        options: What the caller wants.
        replicas: Data-parallel copies of the pipeline.
        compute_metrics: Whether there are metrics that keep a state.

    Raises:
        ScheduleError: an option does not exist, or is of logits that nobody is to get.
    """
    _require_logits(options)
    return Outcome(
        compute_loss=options.compute_loss,
        reduce_output=options.reduce_output,
        bcast_loss=options.bcast_loss,
        return_logits=options.logits_in_epilogue,
        logits_to=options.logits_to,
        compute_metrics=options.compute_loss and compute_metrics,
        replicas=replicas,
    )


def part_of(outcome: Outcome) -> Outcome:
    """What a run delivers that others follow: no more than the logits so far."""
    return replace(outcome, compute_loss=False, compute_metrics=False)


def _require_logits(options: EvalOptions) -> None:
    if options.return_logits or options.on_logits is not None:
        return
    asked = {
        "logits_to": None if options.logits_to == "last" else options.logits_to,
        "logits_device": options.logits_device,
    }
    for name, value in asked.items():
        if value is not None:
            raise ScheduleError(
                f"{name} is {value!r}, but nobody gets logits: needed return_logits=True or an "
                "on_logits"
            )
