"""Cut a row of tokens into windows, and group the windows into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from runtime.text.errors import TextError

MicroBatch = tuple[torch.Tensor, torch.Tensor]
"""Inputs and labels, both int64 [micro_batch, sequence - 1]."""


class Windows:
    """Consecutive windows without overlap, and inside each the prediction of every next token.

    ::

        tokens     0 1 2 3 4 5 6 7 8 9 10 11 12        sequence_length 5, micro_batch_size 2
        windows   |0 1 2 3 4|5 6 7 8 9|10 11 12|
        inputs     0 1 2 3   5 6 7 8   10 11           micro-batches [2, 4] and [1, 2]
        labels     1 2 3 4   6 7 8 9   11 12

    The last window may be shorter: it is a micro-batch of its own, so nothing is ever padded. With
    fewer than 2 tokens it predicts nothing, and is dropped.
    """

    def __init__(
        self,
        tokens: torch.Tensor,
        sequence_length: int,
        micro_batch_size: int,
        max_windows: int | None = None,
    ) -> None:
        """Plan the windows; no token is copied.

        Args:
            tokens: int64 [tokens].
            sequence_length: tokens in a window, one more than it predicts.
            micro_batch_size: windows in a micro-batch.
            max_windows: use only the first ones; None: use all.

        Raises:
            TextError: a number that is too small, or too few tokens to predict any.
        """
        check_sizes(sequence_length, micro_batch_size, max_windows)
        if tokens.dim() != 1:
            raise TextError(f"tokens have shape {list(tokens.shape)}, and one dimension is needed")
        if len(tokens) < 2:
            raise TextError(
                f"the text has {len(tokens)} tokens, and at least 2 are needed to predict one"
            )
        full, rest = divmod(len(tokens), sequence_length)
        if max_windows is not None and full >= max_windows:
            full, rest = max_windows, 0
        self._full = tokens[: full * sequence_length].view(full, sequence_length)
        start = full * sequence_length
        self._ragged = tokens[start : start + rest].unsqueeze(0) if rest >= 2 else None
        self._micro_batch_size = micro_batch_size

    @property
    def windows(self) -> int:
        """Windows, the ragged one included."""
        return len(self._full) + (self._ragged is not None)

    @property
    def tokens(self) -> int:
        """Tokens predicted: one fewer than there are in each window."""
        full, length = self._full.shape
        return full * (length - 1) + (0 if self._ragged is None else self._ragged.shape[1] - 1)

    def __len__(self) -> int:
        """Micro-batches."""
        return -(-len(self._full) // self._micro_batch_size) + (self._ragged is not None)

    def __iter__(self) -> Iterator[MicroBatch]:
        """Yield the micro-batches in the order of the text, from the start every time."""
        for start in range(0, len(self._full), self._micro_batch_size):
            yield _micro_batch(self._full[start : start + self._micro_batch_size])
        if self._ragged is not None:
            yield _micro_batch(self._ragged)


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


def _micro_batch(windows: torch.Tensor) -> MicroBatch:
    # A copy of one micro-batch, since transports and kernels want their rows side by side.
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def _require(name: str, value: int, least: int) -> None:
    if value < least:
        raise TextError(f"{name} is {value}, and at least {least} is needed")
