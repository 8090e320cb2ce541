"""Losses of an evaluation: one row for each micro-batch, and what they are reduced to."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from runtime.data.samples import WeightError, require_alike
from runtime.outputs.exact_sums import Expansion, exact_sum, expansion, quotient
from runtime.outputs.scalars import scalar_table
from runtime.outputs.values import Layout, flatten
from runtime.transport.protocol import Transport
from schemas import Reduction


class Losses:
    """The values of all micro-batches, with their weights.

    They stay on the device, in float64, until the epilogue: no micro-batch makes the host wait. The
    row of a micro-batch is its scalars, and its weight.
    """

    def __init__(self, device: torch.device, agreed: Layout | None = None) -> None:
        """Begin an evaluation without any micro-batch.

        Args:
            device: Where values are collected.
            agreed: How values are nested, if all stages know it from an earlier evaluation.
        """
        self._device = device
        self.layout = agreed
        """How values are nested, as soon as this stage knows."""
        self.known = False
        """Whether this stage is to know the values."""
        self.agreed = agreed
        """How values are nested, once all stages know it."""
        self._micro_batches = 0
        self._rows = scalar_table(device)
        self._reduction: Reduction = "none"
        self._sums: list[Expansion] | None = None
        self._rows_found = 0
        """Micro-batches that are reduced, in all replicas, those of weight zero included."""
        self.uncertain: str | None = None
        """See `SampleWeights.uncertain`."""
        self._received: _Received | None = None

    def expect(self, micro_batches: int) -> None:
        """So many further micro-batches have been evaluated, here or on another rank."""
        self._micro_batches += micro_batches

    def record(self, values: dict[str, Any], weight: float | torch.Tensor) -> None:
        """Note the values of the next micro-batch, and its weight in the average.

        Raises:
            ValueError: they are nested in another way than those before.
        """
        scalars, layout = flatten(values)
        if self.layout is None:
            self.layout = layout
        elif layout is not self.layout and layout != self.layout:
            raise ValueError(
                f"loss_fn and metrics returned {layout}, but {self.layout} for the micro-batches "
                "before: needed the same structure"
            )
        self._rows.append([*scalars, weight])

    def reduce(self, reduction: Reduction) -> None:
        """Reduce the values on the stage that computed them.

        The average of values `v` with weights `w` is `sum(v w) / sum(w)`; the mean of means is
        that with all weights 1. All sums are exact before they are rounded. A micro-batch of
        weight zero does not count in any of them, whatever its values are.

        Raises:
            WeightError: a weight is negative, or no number.
        """
        self.known = True
        self._reduction = reduction
        if reduction == "none":
            return
        table = self._table().cpu()
        weights = table[:, -1]
        if reduction == "avg" and len(wrong := (~(weights.isfinite() & (weights >= 0))).nonzero()):
            micro_batch = int(wrong[0])
            raise WeightError(
                f"the weight of micro-batch {micro_batch} is {float(weights[micro_batch])}, needed "
                "a finite number of at least 0"
            )
        self._rows_found = len(table)
        counted = table[weights != 0]  # of 100,000 micro-batches, a list of lists takes 15 MiB
        factors = counted[:, -1] if reduction == "avg" else torch.ones_like(counted[:, -1])
        columns = [column * factors for column in counted[:, :-1].unbind(1)]
        self._sums = [expansion(terms.tolist()) for terms in (*columns, factors)]

    def all_reduce(self, transport: Transport) -> None:
        """Extend the sums over all replicas; one without micro-batches adds nothing to them.

        Raises:
            ValueError: the replicas' values are nested in different ways.
            WeightError: how they are to be weighed is not certain.
        """
        assert self._sums is not None
        gathered = transport.gather_from_replicas(
            (self.layout, self._sums, self._rows_found, self.uncertain)
        )
        known = [(layout, sums) for layout, sums, _, _ in gathered if layout is not None]
        if not known:
            return
        if self._reduction == "avg":
            require_alike([uncertain for layout, *_, uncertain in gathered if layout is not None])
        self._rows_found = sum(rows for _, _, rows, _ in gathered)
        self.layout = known[0][0]
        for layout, _ in known:
            if layout != self.layout:
                raise ValueError(
                    f"loss_fn and metrics returned {layout} in one replica and {self.layout} in "
                    "another, needed the same structure"
                )
        columns = zip(*(sums for _, sums in known), strict=True)
        self._sums = [expansion(term for sums in column for term in sums) for column in columns]

    def broadcast(self, transport: Transport, source: int) -> None:
        """Hand values, weights and what they were reduced to from stage `source` to all stages.

        One message: the rows, and a last row of the reduced values and of whether there are any.
        """
        self.known = True
        if self.agreed is None:
            self.agreed = transport.gather_objects(self.layout)[source]
        self.layout = self.agreed
        if self.layout is None:  # nobody has had a micro-batch
            return
        if transport.rank == source:
            found = self._reduced_scalars()
            last = [*(found or [math.nan] * self.layout.size), float(found is not None)]
            row = torch.tensor([last], dtype=torch.float64, device=self._device)
            table = torch.cat([self._table(), row])
        else:
            shape = (self._micro_batches + 1, self.layout.size + 1)
            table = torch.empty(shape, dtype=torch.float64, device=self._device)
        transport.broadcast(table, source)
        table = table.cpu()
        *scalars, there = table[-1].tolist()
        self._received = _Received(table[:-1], scalars if there else None)

    def reduced(self) -> dict[str, Any] | None:
        """What the values were reduced to; `None` if it is not known here, or was not wanted."""
        if not self.known or self.layout is None:
            return None
        received = self._received
        scalars = self._reduced_scalars() if received is None else received.reduced
        return None if scalars is None else self.layout.rebuild(scalars)

    def by_micro_batch(self) -> "OfMicroBatches | None":
        """The values and the weight of every micro-batch; `None` if they are not known here."""
        if not self.known:
            return None
        table = self._table() if self._received is None else self._received.table
        *columns, weights = map(tuple, table.T.tolist())
        layout = self.layout
        if layout is None or layout.is_loss_alone:
            return OfMicroBatches(columns[0] if columns else (), ({},) * len(weights), weights)
        values = [layout.rebuild(row) for row in zip(*columns, strict=True)]
        known = all("loss" in value for value in values)
        losses = tuple(value["loss"] for value in values) if known else None
        return OfMicroBatches(losses, tuple(value["metrics"] for value in values), weights)

    def _reduced_scalars(self) -> list[float] | None:
        if self._sums is None:
            return None
        *numerators, denominator = map(exact_sum, self._sums)
        if not denominator and self._rows_found:
            raise WeightError(
                f"the weights of all {self._rows_found} micro-batches are zero, needed one that "
                "counts"
            )
        if self._reduction == "sum":
            return numerators
        return [quotient(numerator, denominator) for numerator in numerators]

    def _table(self) -> torch.Tensor:
        """All rows, float64 `[micro_batches, scalars + 1]`."""
        return self._rows.rows(1 if self.layout is None else self.layout.size + 1)


class OfMicroBatches(NamedTuple):
    """What is known of each micro-batch, in order."""

    losses: tuple[Any, ...] | None
    metrics: tuple[dict[str, Any], ...]
    """The same empty one everywhere, where there are none: an object for each takes its memory."""
    weights: tuple[float, ...]


@dataclass(frozen=True)
class _Received:
    table: torch.Tensor
    reduced: list[float] | None
