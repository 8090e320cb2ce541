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


def spans_of(documents: Documents, sequence_length: int, stride: int | None = None) -> Spans:
    """The windows of `sequence_length` tokens at most, in the order of the text.

    Without separators, and over documents that are packed: consecutive windows without overlap,
    in which all tokens but the first are targets.

    Each document alone: every token is the target of one window, and the separator is the context
    of the first. Windows after the first of a document reach back for as much context as they have
    room for, and at least one token.

    With a stride: windows begin so many tokens after each other, and targets are the tokens that
    were none before.

    A token for the beginning of a text before a window takes the place of one of its tokens, and
    the first token is a target, too.

    Sources: `get_rolling_token_windows` of lm-evaluation-harness, with a context of one token and
    windows of `sequence_length - 1` targets; for strides
    https://huggingface.co/docs/transformers/perplexity.
    """
    bounds: list[tuple[int, int]] = list(
        zip(documents.starts[:-1].tolist(), documents.starts[1:].tolist(), strict=True)
    )
    if documents.mode == "packed":
        bounds = [(bounds[0][0], bounds[-1][1])]
    room = sequence_length - (documents.bos is not None)
    if documents.is_each_alone and stride is None:
        return _rolling(bounds, sequence_length - 1, room)
    step = room if stride is None else stride
    # What stands before the last window's end is behind the one before it.
    counts = [1 + max(0, -(-(stop - start - room) // step)) for start, stop in bounds]
    firsts, ends = torch.tensor(bounds, dtype=torch.int64).unbind(1)
    number = torch.cat([torch.arange(count) for count in counts])
    of_each = torch.tensor(counts)
    starts = torch.repeat_interleave(firsts, of_each) + number * step
    ends = torch.repeat_interleave(ends, of_each)
    first_targets = torch.where(number > 0, starts - step + room, starts)
    if documents.has_separators:
        led = torch.isin(starts, documents.starts)
    else:
        led = torch.zeros_like(starts, dtype=torch.bool)
    lone = led if documents.bos is not None else torch.ones_like(led)
    first_targets = torch.maximum(first_targets, starts + lone.long())
    return Spans(starts, first_targets, torch.minimum(starts + room, ends))


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


def led_by_bos(documents: Documents, spans: Spans) -> torch.Tensor:
    """Which windows have a token before them that is not of the row, bool `[windows]`."""
    if documents.bos is None:
        return torch.zeros_like(spans.starts, dtype=torch.bool)
    if not documents.has_separators:
        return torch.ones_like(spans.starts, dtype=torch.bool)
    return ~torch.isin(spans.starts, documents.starts)


def _separators(documents: Documents, places: torch.Tensor) -> torch.Tensor:
    """How many separators come before each of the places."""
    return torch.searchsorted(documents.starts[:-1], places)


def _rolling(bounds: list[tuple[int, int]], targets: int, room: int) -> Spans:
    rows = []
    for separator, end in bounds:
        for first_target in range(separator + 1, end, targets):
            stop = min(first_target + targets, end)
            is_first = first_target == separator + 1
            start = separator if is_first else max(separator, stop - room)
            rows.append((start, first_target, stop))
    starts, first_targets, stops = torch.tensor(rows, dtype=torch.int64).unbind(1)
    return Spans(starts, first_targets, stops)
