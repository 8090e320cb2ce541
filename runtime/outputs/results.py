"""The results of an evaluation on one stage, and what they are to the caller."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from runtime.outputs.logits import Logits
from runtime.outputs.losses import Losses
from runtime.outputs.metrics import Metrics


@dataclass(frozen=True)
class Results:
    """What the runs of an evaluation add to, and the epilogue works on."""

    losses: Losses
    """With the metrics that are functions."""
    metrics: Metrics
    logits: Logits


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation gives to one stage; `None` where it was not asked for or not handed on.

    Losses and metrics are nested as the caller's functions nest them, with floats in place of
    tensors. With data-parallel replicas, what is reduced is reduced over all of them; what is given
    for each micro-batch is given for those of this replica.

    Of an evaluation with `return_logits=True`, `loss, logits = result` is what DeepSpeed's
    `eval_batch(..., return_logits=True)` returns; everything else is in the attributes.
    """

    micro_batches: int
    """M: how many micro-batches this replica evaluated."""
    loss: Any = None
    """The losses, reduced: a float, or floats nested as the loss function nests them. `None` with
    `reduce_output=None` or `compute_loss=False`, and with `bcast_loss=False` on all but the last
    stage."""
    losses: tuple[Any, ...] | None = None
    """The loss of each micro-batch, in order; on the stages that get the losses."""
    weights: tuple[float, ...] | None = None
    """The weight of each micro-batch in the average: its samples, or what `weight_fn` says."""
    logits: tuple[Any, ...] | None = None
    """The output of each micro-batch, in order; with `return_logits`, on the stages that
    `logits_to` names."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Metrics by name: those that are functions reduced like the loss, the others computed."""
    metrics_of_micro_batches: tuple[dict[str, Any], ...] | None = None
    """The metrics of each micro-batch that are functions."""
    return_logits: bool = field(default=False, repr=False)
    """Whether logits were asked for, on any stage."""

    def __iter__(self) -> Iterator[Any]:
        """`loss, logits`, of an evaluation with `return_logits`.

        Raises:
            TypeError: logits were not asked for.
        """
        if not self.return_logits:
            raise TypeError("an EvalResult without return_logits=True has no pair: use its .loss")
        yield self.loss
        yield self.logits


def eval_result(micro_batches: int, results: Results) -> EvalResult:
    """The result of an evaluation, as far as this stage knows it."""
    reduced = results.losses.reduced() or {}
    by_micro_batch = results.losses.by_micro_batch()
    losses, metrics, weights = by_micro_batch or (None, None, None)
    handed_out = results.logits.handed_out
    return EvalResult(
        micro_batches=micro_batches,
        loss=reduced.get("loss"),
        losses=losses,
        weights=weights,
        logits=None if handed_out is None else tuple(handed_out),
        metrics=reduced.get("metrics", {}) | results.metrics.computed,
        metrics_of_micro_batches=metrics,
        return_logits=results.logits.returned,
    )
