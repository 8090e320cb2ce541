"""What an evaluation returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from runtime.results import Results, weighted_average


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation gives to one stage; `None` where it was not asked for or not handed on."""

    micro_batches: int
    """M."""
    loss: float | None
    """The weighted average of the losses."""
    losses: tuple[float, ...] | None
    """The loss of each micro-batch."""
    weights: tuple[float, ...] | None
    """The weight of each micro-batch in the average."""
    logits: tuple[Any, ...] | None
    """The output of each micro-batch, on the last stage."""

    @classmethod
    def of_run(cls, micro_batches: int, results: Results) -> "EvalResult":
        """The result of one run."""
        return cls(micro_batches, results.loss, results.losses, results.weights, results.logits)


def combined(parts: Sequence[EvalResult]) -> EvalResult:
    """The result over the micro-batches of all parts, as if they had been one run."""
    losses = _joined([part.losses for part in parts])
    weights = _joined([part.weights for part in parts])
    return EvalResult(
        micro_batches=sum(part.micro_batches for part in parts),
        loss=None if losses is None or weights is None else weighted_average(losses, weights),
        losses=losses,
        weights=weights,
        logits=_joined([part.logits for part in parts]),
    )


def _joined(columns: Sequence[tuple[Any, ...] | None]) -> tuple[Any, ...] | None:
    known = [column for column in columns if column is not None]
    return tuple(chain.from_iterable(known)) if len(known) == len(columns) else None
