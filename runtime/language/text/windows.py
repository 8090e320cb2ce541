"""Windows over documents, grouped into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from runtime.language.text.documents import Documents
from runtime.language.text.errors import TextError
from runtime.language.text.spans import led_by_bos, separators_between, spans_of, targets_in

IGNORED = -100
"""The label of a token that is only context, as of torch's `cross_entropy`."""

MicroBatch = tuple[torch.Tensor, torch.Tensor]
"""Inputs and labels, both int64 `[micro_batch, positions]`."""


class Windows:
    """The windows of `spans_of` that have a target, the longest first.

    ::

        tokens     0 1 2 3 4 5 6 7 8 9 10 11 12        sequence_length 5, micro_batch_size 2
        windows   |0 1 2 3 4|5 6 7 8 9|10 11 12|
        inputs     0 1 2 3   5 6 7 8   10 11           micro-batches [2, 4] and [1, 2]
        labels     1 2 3 4   6 7 8 9   11 12

    Windows of one length make a micro-batch. Only documents that are each evaluated alone may have
    as many lengths as there are of them: then shorter windows are filled up at their ends, which a
    causal model cannot look at, with labels that do not count.
    """

    def __init__(
        self,
        documents: Documents,
        sequence_length: int,
        micro_batch_size: int,
        max_windows: int | None = None,
        stride: int | None = None,
    ) -> None:
        """Plan the windows; no token is copied.

        Args:
            documents: what to cut.
            sequence_length: tokens in a window, one more than it predicts at most; the token for
                the beginning of a text is one of them.
            micro_batch_size: windows in a micro-batch.
            max_windows: use only the first ones of the text; None: use all.
            stride: tokens between the beginnings of windows that overlap; None: no more overlap
                than `spans_of` says.

        Raises:
            TextError: a number that is too small, or too few tokens to predict any.
        """
        check_sizes(sequence_length, micro_batch_size, max_windows, stride)
        if stride is not None and documents.bos is not None and stride >= sequence_length:
            raise TextError(
                f"stride is {stride}, and at most {sequence_length - 1} is needed: windows have "
                f"{sequence_length} tokens, the one for the beginning of a text included"
            )
        if documents.tokens.dim() != 1:
            raise TextError(
                f"tokens have shape {list(documents.tokens.shape)}, and one dimension is needed"
            )
        require_targets(documents)
        spans = spans_of(documents, sequence_length, stride)
        targets = targets_in(documents, spans)
        some = targets.nonzero().flatten()[:max_windows]
        if not len(some):
            raise TextError(
                f"no window of {sequence_length} tokens holds a token to predict after another"
            )
        self.tokens = int(targets[some].sum())
        """Tokens predicted: the targets of all windows."""
        spans = spans.at(some)
        led = led_by_bos(documents, spans)
        lengths = spans.stops - spans.starts + led
        order = torch.argsort(lengths, descending=True, stable=True)
        self.documents, self._spans, self._led = documents, spans.at(order), led[order].long()
        fill = documents.is_each_alone
        self._bounds = _bounds(lengths[order], micro_batch_size, fill=fill)

    @property
    def windows(self) -> int:
        """Windows, shorter ones included."""
        return len(self._spans.starts)

    def __len__(self) -> int:
        """Micro-batches."""
        return len(self._bounds) - 1

    def __iter__(self) -> Iterator[MicroBatch]:
        """Yield the micro-batches, from the start every time."""
        return self.after(0)

    def after(self, micro_batches: int) -> Iterator[MicroBatch]:
        """Yield all but the first so many micro-batches."""
        return (self._micro_batch(number) for number in range(micro_batches, len(self)))

    def targets(self, micro_batch: int) -> torch.Tensor:
        """Where in the row of tokens the targets of a micro-batch are, int64 `[targets]`.

        They are in the order of the labels that are not `IGNORED`.
        """
        places = self._places(micro_batch)
        return places[places >= 0]

    def window_of_targets(self, micro_batch: int) -> torch.Tensor:
        """The window that each target of a micro-batch is in, int64 `[targets]`."""
        return (self._places(micro_batch) >= 0).nonzero()[:, 0] + self._bounds[micro_batch]

    def sums(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of the values of each window's targets, and their number.

        Args:
            values: Of every token, `[tokens]`; NaN where there is none.

        Returns:
            float64 `[windows]` each.
        """
        there = ~values.isnan()
        columns = torch.stack([torch.where(there, values.double(), 0.0), there.double()], 1)
        total = torch.zeros(len(values) + 1, 2, dtype=torch.float64)
        torch.cumsum(columns, 0, out=total[1:])
        first, stop = self._spans.first_targets, self._spans.stops
        sums, counts = (total[stop] - total[torch.minimum(first, stop)]).unbind(1)
        return sums, counts

    def _micro_batch(self, number: int) -> MicroBatch:
        """A copy, since transports and kernels want their rows side by side."""
        documents, places = self.documents, self._places(number)
        labels = torch.where(places >= 0, documents.tokens[places.clamp(min=0)], IGNORED)
        inputs = torch.full_like(labels, documents.separator)
        for row, (start, _, stop, led) in enumerate(self._rows(number)):
            inputs[row, led : stop - start - 1 + led] = documents.tokens[start : stop - 1]
            if led:
                assert documents.bos is not None
                inputs[row, 0] = documents.bos
        return inputs, labels

    def _places(self, number: int) -> torch.Tensor:
        """Where each label is in the row of tokens, -1 where none counts."""
        rows = self._rows(number)
        width = max(stop - start - 1 + led for start, _, stop, led in rows)
        places = torch.full((len(rows), width), -1, dtype=torch.int64)
        for row, (start, first_target, stop, led) in enumerate(rows):
            before = start + 1 - led
            places[row, first_target - before : stop - before] = torch.arange(first_target, stop)
            if self.documents.mode == "packed":
                places[row, separators_between(self.documents, before, stop)] = -1
        return places

    def _rows(self, number: int) -> list[tuple[int, int, int, int]]:
        """Start, first target and stop of each window, and whether `bos` comes before it."""
        some = slice(self._bounds[number], self._bounds[number + 1])
        columns = (*self._spans.at(some), self._led[some])
        return list(zip(*(column.tolist() for column in columns), strict=True))


def check_sizes(
    sequence_length: int,
    micro_batch_size: int,
    max_windows: int | None = None,
    stride: int | None = None,
) -> None:
    """Refuse sizes that no windows can have.

    Raises:
        TextError: a number that is too small, or a stride that leaves tokens out.
    """
    _require("sequence_length", sequence_length, 2)
    _require("micro_batch_size", micro_batch_size, 1)
    if max_windows is not None:
        _require("max_windows", max_windows, 1)
    if stride is not None:
        _require("stride", stride, 1)
        if stride > sequence_length:
            raise TextError(
                f"stride is {stride}, and at most {sequence_length} is needed, the sequence_length"
            )


def require_targets(documents: Documents) -> None:
    """Refuse whole texts of which none is long enough; among others, such a one has no window.

    Raises:
        TextError: naming the first one, where the origins of documents are known.
    """
    least = 2 if documents.bos is None else 1
    lengths = documents.starts.diff()
    if documents.mode != "whole" or int(lengths.max()) >= least:
        return
    first = int(lengths[0])
    several = len(lengths) > 1
    name = "the first text" if several else "the text"
    if documents.origins is not None:
        name = documents.origins.names[0]
    raise TextError(
        f"{name} has {first} token{'' if first == 1 else 's'}, and at least {least} "
        f"{'is' if least == 1 else 'are'} needed to predict one"
        + (f"; none of the {len(lengths)} texts has as many" if several else "")
    )


def _bounds(lengths: torch.Tensor, size: int, *, fill: bool) -> list[int]:
    """The first window of each micro-batch, and the number of windows.

    Args:
        lengths: of the windows, in order; at least one.
        size: windows in a micro-batch.
        fill: whether windows of different lengths may be in one.
    """
    alike = [len(lengths)] if fill else torch.unique_consecutive(lengths, return_counts=True)[1]
    bounds = [0]
    for count in map(int, alike):
        end = bounds[-1] + count
        bounds += [*range(bounds[-1] + size, end, size), end]
    return bounds


def _require(name: str, value: int, least: int) -> None:
    if value < least:
        raise TextError(f"{name} is {value}, and at least {least} is needed")
