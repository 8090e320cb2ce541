"""Scores of labels, without the logits of everything: the head is applied where somebody asks.

Logits are [tokens, vocabulary]: with 100 thousand words, the largest tensor of an evaluation.
A `ScoringLayer` in the place of the head hands out the hidden states and the head itself, and
`label_scores` goes through the positions with a label, a piece at a time.

The bits are those of `cross_entropy` on what the head gives for the same piece of hidden states. A
matrix product over other rows at once may differ from it in the last bits, so pieces depend on the
labels and on `logits_at_once` alone, never on the stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from runtime.language.models.split.layers import Activation, HeadLayer, unpack

IGNORED = -100
"""The label of a position that nobody asks about."""

LOGITS_AT_ONCE = 2**24
"""64 MiB in float32, of which about three exist at a time."""


class LabelScores(NamedTuple):
    """What the model makes of each label."""

    log_probs: torch.Tensor
    """Their log-probabilities in nats, float32 [micro_batch, sequence]; 0 where none is asked."""
    greedy: torch.Tensor
    """Whether each is the most likely token, bool [micro_batch, sequence]; True where none is."""


@dataclass(frozen=True)
class PendingLogits:
    """The last hidden states, and the head that would make logits of them."""

    hidden: torch.Tensor
    """[micro_batch, sequence, hidden]."""
    head: HeadLayer

    def logits(self) -> torch.Tensor:
        """All of them: [micro_batch, sequence, vocabulary], as `HeadLayer` gives them."""
        return self.head.logits(self.hidden)

    def at(self, rows: torch.Tensor) -> torch.Tensor:
        """The logits of some positions: [rows, vocabulary].

        Args:
            rows: Their numbers in the micro-batch, `sequence x row + column`: int64 [rows].
        """
        chosen = self.hidden.flatten(0, 1)[rows]
        return self.head.logits(chosen.unsqueeze(1)).squeeze(1)

    @property
    def vocabulary(self) -> int:
        """The number of logits of a position."""
        size: int = self.head.lm.config.get_text_config(decoder=True).vocab_size
        return size


class ScoringLayer(nn.Module):
    """A head that waits until it is known what is asked: for the end of a pipeline."""

    def __init__(self, head: HeadLayer) -> None:
        """Take the place of `head`, whose weights keep their names."""
        super().__init__()
        self.lm = head.lm
        self._head = [head]  # in a list, so that its weights are not counted twice

    def forward(self, activation: Activation) -> PendingLogits:
        """Wrap a hidden state [micro_batch, sequence, hidden]."""
        return PendingLogits(unpack(activation)[0], self._head[0])


def label_scores(
    output: PendingLogits | torch.Tensor,
    labels: torch.Tensor,
    *,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> LabelScores:
    """Score labels, in pieces of so many tokens that few logits exist at a time.

    Args:
        output: Of a `ScoringLayer`; or logits [micro_batch, sequence, vocabulary].
        labels: int64 [micro_batch, sequence]; `IGNORED` where nothing is asked.
        logits_at_once: How many logits a piece may have; at least one position is taken.
    """
    rows = (labels != IGNORED).flatten().nonzero().squeeze(1)
    wanted = labels.flatten()[rows]
    log_probs = torch.zeros(labels.numel(), dtype=torch.float32, device=labels.device)
    greedy = torch.ones(labels.numel(), dtype=torch.bool, device=labels.device)
    vocabulary = output.vocabulary if isinstance(output, PendingLogits) else output.shape[-1]
    length = max(1, logits_at_once // vocabulary)
    for start in range(0, rows.numel(), length):
        piece, asked = rows[start : start + length], wanted[start : start + length]
        if isinstance(output, PendingLogits):
            logits = output.at(piece).float()
        else:
            logits = output.flatten(0, 1)[piece].float()
        log_probs[piece] = -functional.cross_entropy(logits, asked, reduction="none")
        greedy[piece] = logits.argmax(-1) == asked
    return LabelScores(log_probs.view_as(labels), greedy.view_as(labels))


def mean_loss(scores: LabelScores, labels: torch.Tensor) -> torch.Tensor:
    """The mean of the negative log-probabilities, in nats: what `cross_entropy` gives, bit for bit.

    Args:
        scores: Of `label_scores`.
        labels: int64 [micro_batch, sequence]; `IGNORED` where nothing was asked.

    Returns:
        A scalar; NaN where nothing was asked.
    """
    # torch's own sum over the tokens, of classes that are one: its order decides the last bits.
    only = torch.where(labels == IGNORED, IGNORED, 0).flatten()
    return functional.nll_loss(scores.log_probs.flatten().unsqueeze(1), only, ignore_index=IGNORED)
