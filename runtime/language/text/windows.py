"""Windows over documents, grouped into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch

from runtime.language.text.documents import Documents
from runtime.language.text.errors import TextError
from runtime.language.text.spans import separators_between, spans_of, targets_in

IGNORED = -100
"""The label of a token that is only context, as of torch's `cross_entropy`."""

MicroBatch = tuple[torch.Tensor, torch.Tensor]
"""Inputs and labels, both int64 [micro_batch, sequence - 1]."""


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
    ) -> None:
        """Plan the windows; no token is copied.

        Args:
            documents: what to cut.
            sequence_length: tokens in a window, one more than it predicts at most.
            micro_batch_size: windows in a micro-batch.
            max_windows: use only the first ones of the text; None: use all.

        Raises:
            TextError: a number that is too small, or too few tokens to predict any.
        """
        check_sizes(sequence_length, micro_batch_size, max_windows)
        if documents.tokens.dim() != 1:
            raise TextError(
                f"tokens have shape {list(documents.tokens.shape)}, and one dimension is needed"
            )
        if documents.mode == "whole":
            _require_targets(documents.starts.diff().tolist())
        spans = spans_of(documents, sequence_length)
        targets = targets_in(documents, spans)
        some = targets.nonzero().flatten()[:max_windows]
        if not len(some):
            raise TextError(
                f"no window of {sequence_length} tokens holds a token to predict after another"
            )
        self.tokens = int(targets[some].sum())
        """Tokens predicted: the targets of all windows."""
        spans = spans.at(some)
        lengths = spans.stops - spans.starts
        order = torch.argsort(lengths, descending=True, stable=True)
        self._documents, self._spans = documents, spans.at(order)
        self._bounds = _bounds(lengths[order], micro_batch_size, fill=documents.mode == "lines")

    @property
    def windows(self) -> int:
        """Windows, shorter ones included."""
        return len(self._spans.starts)

    def __len__(self) -> int:
        """Micro-batches."""
        return len(self._bounds) - 1

    def __iter__(self) -> Iterator[MicroBatch]:
        """Yield the micro-batches, from the start every time."""
        return (self._micro_batch(first, end) for first, end in pairwise(self._bounds))

    def _micro_batch(self, first: int, end: int) -> MicroBatch:
        """A copy, since transports and kernels want their rows side by side."""
        tokens, rows = self._documents.tokens, self._spans.at(slice(first, end))
        shape = (end - first, int((rows.stops - rows.starts)[0]) - 1)
        inputs = torch.full(shape, self._documents.separator, dtype=torch.int64)
        labels = torch.full(shape, IGNORED, dtype=torch.int64)
        for row, bounds in enumerate(zip(*(column.tolist() for column in rows), strict=True)):
            start, first_target, stop = bounds
            inputs[row, : stop - start - 1] = tokens[start : stop - 1]
            labels[row, first_target - start - 1 : stop - start - 1] = tokens[first_target:stop]
            if self._documents.mode == "packed":
                labels[row, separators_between(self._documents, start + 1, stop)] = IGNORED
        return inputs, labels


def check_sizes(
    sequence_length: int, micro_batch_size: int, max_windows: int | None = None
) -> None:
    """Refuse sizes that no windows can have.

    Raises:
        TextError: a number that is too small.
    """
    _require("sequence_length", sequence_length, 2)
    _require("micro_batch_size", micro_batch_size, 1)
    if max_windows is not None:
        _require("max_windows", max_windows, 1)


def _require_targets(lengths: list[int]) -> None:
    for number, length in enumerate(lengths, 1):
        if length < 2:
            name = "the text" if len(lengths) == 1 else f"text {number} of {len(lengths)}"
            raise TextError(f"{name} has {length} tokens, and at least 2 are needed to predict one")


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
