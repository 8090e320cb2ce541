"""Where the windows over documents begin and end, and which of their tokens are targets."""

from __future__ import annotations

from typing import NamedTuple

import torch

from runtime.language.text.documents import Documents


class Spans(NamedTuple):
    """Windows over a row of tokens, int64 `[windows]` each.

    ::

        tokens    start ........ first_target ........ stop
                  context only   targets, separators excepted
    """

    starts: torch.Tensor
    first_targets: torch.Tensor
    stops: torch.Tensor

    def at(self, which: torch.Tensor | slice) -> Spans:
        """Some of the windows."""
        return Spans(*(column[which] for column in self))


def spans_of(documents: Documents, sequence_length: int) -> Spans:
    """The windows of `sequence_length` tokens at most, in the order of the text.

    Without separators, and over documents that are packed: consecutive windows without overlap,
    in which all tokens but the first are targets.

    Each document alone: every token is the target of one window, and the separator is the context
    of the first. Windows after the first of a document reach back for as much context as they have
    room for, and at least one token.

    Source: `get_rolling_token_windows` of lm-evaluation-harness, with a context of one token and
    windows of `sequence_length - 1` targets.
    """
    bounds: list[tuple[int, int]] = list(
        zip(documents.starts[:-1].tolist(), documents.starts[1:].tolist(), strict=True)
    )
    if documents.mode == "lines":
        return _of_each(bounds, sequence_length - 1)
    if documents.mode == "packed":
        bounds = [(bounds[0][0], bounds[-1][1])]
    starts = torch.cat([torch.arange(*bound, sequence_length) for bound in bounds])
    ends = torch.repeat_interleave(
        torch.tensor([stop for _, stop in bounds]),
        torch.tensor([-(-(stop - start) // sequence_length) for start, stop in bounds]),
    )
    return Spans(starts, starts + 1, torch.minimum(starts + sequence_length, ends))


def targets_in(documents: Documents, spans: Spans) -> torch.Tensor:
    """The number of targets of each window, int64 `[windows]`."""
    targets = (spans.stops - spans.first_targets).clamp(min=0)
    if documents.mode == "packed":
        first, end = (_separators(documents, at) for at in (spans.first_targets, spans.stops))
        targets -= (end - first).clamp(min=0)
    return targets


def separators_between(documents: Documents, start: int, stop: int) -> torch.Tensor:
    """Where in `tokens[start:stop]` separators are, int64 `[separators]`."""
    first, end = _separators(documents, torch.tensor([start, stop])).tolist()
    return documents.starts[first:end] - start


def _separators(documents: Documents, places: torch.Tensor) -> torch.Tensor:
    """How many separators come before each of the places."""
    return torch.searchsorted(documents.starts[:-1], places)


def _of_each(bounds: list[tuple[int, int]], targets: int) -> Spans:
    rows = []
    for separator, end in bounds:
        for first_target in range(separator + 1, end, targets):
            stop = min(first_target + targets, end)
            rows.append((max(separator, stop - targets - 1), first_target, stop))
    starts, first_targets, stops = torch.tensor(rows, dtype=torch.int64).unbind(1)
    return Spans(starts, first_targets, stops)
