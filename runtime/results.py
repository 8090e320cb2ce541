"""The results of one run: losses, their weighted average, and the logits."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch

from runtime.transport.protocol import Transport

LogitsCallback = Callable[[int, Any], None]


class Results:
    """Collects what the last stage delivers, and what the epilogue makes of it.

    Losses and weights stay on the device, in float64, until the epilogue: no micro-batch makes the
    host wait. The row of micro-batch `m` is `(loss, weight)`; the last row is `(sum of loss x
    weight, sum of weights)`, whose quotient is the reduced loss.
    """

    def __init__(
        self,
        micro_batches: int,
        device: torch.device,
        *,
        keep_logits: bool = False,
        on_logits: LogitsCallback | None = None,
    ) -> None:
        """Make room for the results of `micro_batches` micro-batches.

        Args:
            micro_batches: M.
            device: Where losses are collected.
            keep_logits: Whether logits are kept to be collected.
            on_logits: Called with each micro-batch and its logits as they come.
        """
        self._table = torch.full((micro_batches + 1, 2), math.nan, dtype=torch.float64)
        self._table = self._table.to(device)
        self._outputs: dict[int, Any] | None = {} if keep_logits else None
        self._on_logits = on_logits
        self._known = False
        self._logits: tuple[Any, ...] | None = None

    def record(self, micro_batch: int, loss: torch.Tensor | None, weight: float) -> None:
        """Note the loss of a micro-batch and its weight in the average."""
        if loss is not None:
            self._table[micro_batch, 0] = loss.detach()
            self._table[micro_batch, 1] = weight

    def deliver(self, micro_batch: int, output: Any) -> None:
        """Take the logits of a micro-batch: pass them on, keep them, or let them go."""
        if self._on_logits is not None:
            self._on_logits(micro_batch, output)
        if self._outputs is not None:
            self._outputs[micro_batch] = output

    def reduce(self, reduction: Literal["avg", "none"]) -> None:
        """Reduce the losses on the stage that computed them.

        The average of losses `l` with weights `w` is `sum(l w) / sum(w)`. Both sums are exact
        (`math.fsum`) before they are rounded, so they do not depend on the order.
        """
        self._known = True
        if reduction == "avg":
            rows = self._table[:-1].tolist()
            sums = weighted_sums([loss for loss, _ in rows], [weight for _, weight in rows])
            self._table[-1] = torch.tensor(sums, dtype=torch.float64)

    def all_reduce(self, transport: Transport) -> None:
        """Extend the two sums of the average over the data-parallel replicas."""
        transport.sum_over_replicas(self._table[-1])

    def broadcast(self, transport: Transport, source: int) -> None:
        """Hand losses, weights and the reduced loss of stage `source` to all stages."""
        transport.broadcast(self._table, source)
        self._known = True

    def collect_logits(self) -> None:
        """Hand out the logits that were kept, in the order of the micro-batches."""
        outputs = self._outputs or {}
        self._logits = tuple(outputs[micro_batch] for micro_batch in sorted(outputs))

    @property
    def loss(self) -> float | None:
        """The reduced loss; `None` where it is not known or was not reduced (its row is empty)."""
        total, weights = self._table[-1].tolist()
        if not self._known or math.isnan(weights):
            return None
        return total / weights if weights else math.nan

    @property
    def losses(self) -> tuple[float, ...] | None:
        """The loss of every micro-batch; `None` where they are not known."""
        return tuple(self._column(0)) if self._known else None

    @property
    def weights(self) -> tuple[float, ...] | None:
        """The weight of every micro-batch; `None` where they are not known."""
        return tuple(self._column(1)) if self._known else None

    @property
    def logits(self) -> tuple[Any, ...] | None:
        """The logits of every micro-batch; `None` where they were not collected."""
        return self._logits

    def _column(self, number: int) -> Iterator[float]:
        return iter(self._table[:-1, number].tolist())


def weighted_sums(values: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    """`(sum of value x weight, sum of weights)`, each sum rounded once, whatever the order."""
    products = [value * weight for value, weight in zip(values, weights, strict=True)]
    return _exact_sum(products), _exact_sum(weights)


def weighted_average(values: Sequence[float], weights: Sequence[float]) -> float:
    """`sum(value x weight) / sum(weight)`; NaN if the weights sum to zero."""
    total, weight = weighted_sums(values, weights)
    return total / weight if weight else math.nan


def _exact_sum(values: Sequence[float]) -> float:
    # fsum refuses infinities of both signs; the plain sum gives what they lead to.
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)
