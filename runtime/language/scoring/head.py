"""The head of a language model, applied only to the positions that somebody asks about.

The logits of a micro-batch, `[rows, sequence, vocabulary]`, are the largest tensor of an
evaluation, and most of them are not read. Here the last stage hands its hidden state on, the head
gets the positions in question, in pieces of tokens, and of each piece only what is asked stays.
"""

from itertools import pairwise

import torch
from torch import nn

from runtime.language.models.split.layers import Activation, unpack
from runtime.language.scoring.batching import Label

PIECE = 64 * 2**20
"""Bytes of the logits, in float32, that exist at a time."""


class ScoringHead(nn.Module):
    """The last layer of a pipeline that scores: holds the head, and passes hidden states on."""

    def __init__(
        self, head: nn.Module, vocabulary_size: int, softmax_dtype: torch.dtype | None = None
    ) -> None:
        """Hold `head`.

        Args:
            head: Maps hidden states `[1, positions, hidden]` to logits.
            vocabulary_size: Of the logits; decides how many positions make a piece.
            softmax_dtype: Of log-probabilities; default: that of the logits.
        """
        super().__init__()
        self.head = head
        self.positions = max(1, PIECE // (4 * vocabulary_size))
        """At a time."""
        self.softmax_dtype = softmax_dtype

    def forward(self, activation: Activation) -> torch.Tensor:
        """Pass a hidden state `[rows, sequence, hidden]` on."""
        return unpack(activation)[0]

    def score(self, hidden: torch.Tensor, label: Label) -> torch.Tensor:
        """Answer the questions of a micro-batch.

        Args:
            hidden: `[rows, sequence, hidden]`.
            label: The questions.

        Returns:
            float64 `[questions, 2]`: the log-probability of the target, and 1 where the target is
            the most probable token, else 0.
        """
        answers = torch.zeros(len(label.targets), 2, dtype=torch.float64, device=hidden.device)
        starts = torch.arange(
            0, len(label.positions) + self.positions, self.positions, device=hidden.device
        )
        bounds: list[int] = torch.searchsorted(label.questions, starts).tolist()
        for piece, (first, stop) in enumerate(pairwise(bounds)):
            logits = self._logits(hidden, label.positions, piece)
            log_probs = logits.log_softmax(dim=-1, dtype=self.softmax_dtype)
            at = label.questions[first:stop] - piece * self.positions
            targets = label.targets[first:stop]
            answers[first:stop, 0] = log_probs[at, targets].double()
            answers[first:stop, 1] = (log_probs.argmax(dim=-1)[at] == targets).double()
        return answers

    def next_tokens(self, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The most probable token after each of some positions.

        Args:
            hidden: `[rows, sequence, hidden]`.
            positions: int64 `[positions]`, in the flattened micro-batch.

        Returns:
            int64 `[positions]`.
        """
        pieces = range(-(-len(positions) // self.positions))
        found = [self._logits(hidden, positions, piece).argmax(dim=-1) for piece in pieces]
        return torch.cat(found)

    def _logits(self, hidden: torch.Tensor, positions: torch.Tensor, piece: int) -> torch.Tensor:
        """Logits `[positions of the piece, vocabulary]`."""
        some = positions[piece * self.positions : (piece + 1) * self.positions]
        logits: torch.Tensor = self.head(hidden.flatten(0, 1)[some].unsqueeze(0))
        return logits.squeeze(0)
