"""Scores of labels, without the logits of everything: the head is applied where somebody asks.

Logits are [tokens, vocabulary]: with 100 thousand words, the largest tensor of an evaluation.
A `ScoringLayer` in the place of the head hands out the hidden states and the head itself, and
`logits_in_pieces` goes through the positions that somebody asks about, some at a time. Perplexity,
the scores of answers and greedy generation all read logits through it.

The bits are those of `cross_entropy` on what the head gives for the same piece of hidden states. A
matrix product over other rows at once may differ from it in the last bits, so pieces depend on the
positions and on `logits_at_once` alone, never on the stages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

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
class Targets:
    """The labels of a micro-batch that somebody asks about; int64 [targets] each."""

    positions: torch.Tensor
    """Where they are predicted, `sequence x row + column`, ascending."""
    tokens: torch.Tensor
    """What they are."""

    @classmethod
    def of(cls, labels: torch.Tensor) -> Self:
        """Those that are not `IGNORED`, of int64 [micro_batch, sequence]; waits for its device."""
        flat = labels.flatten()
        positions = (flat != IGNORED).nonzero().squeeze(1)
        return cls(positions, flat[positions])

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class PendingLogits:
    """The last hidden states, and the head that would make logits of them."""

    hidden: torch.Tensor
    """[micro_batch, sequence, hidden]."""
    head: HeadLayer

    def logits(self) -> torch.Tensor:
        """All of them: [micro_batch, sequence, vocabulary], as `HeadLayer` gives them."""
        return self.head.logits(self.hidden)

    def at(self, positions: torch.Tensor) -> torch.Tensor:
        """The logits of some positions: [positions, vocabulary].

        Args:
            positions: `sequence x row + column` of each: int64 [positions].
        """
        chosen = self.hidden.flatten(0, 1)[positions]
        return self.head.logits(chosen.unsqueeze(1)).squeeze(1)


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


def logits_in_pieces(
    output: PendingLogits | torch.Tensor,
    positions: torch.Tensor,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """The logits of some positions, in pieces of so many positions that few exist at a time.

    Args:
        output: Of a `ScoringLayer`; or logits [micro_batch, sequence, vocabulary].
        positions: `sequence x row + column` of each: int64 [positions].
        logits_at_once: How many logits a piece may have; at least one position is taken.

    Yields:
        Which of the positions, and their logits [positions of the piece, vocabulary].
    """
    length = positions_at_once(output, logits_at_once)
    for start in range(0, len(positions), length):
        piece = slice(start, start + length)
        some = positions[piece]
        if isinstance(output, PendingLogits):
            yield piece, output.at(some)
        else:
            yield piece, output.flatten(0, 1)[some]


def positions_at_once(output: PendingLogits | torch.Tensor, logits_at_once: int) -> int:
    """How many positions make a piece of `logits_in_pieces`."""
    if isinstance(output, PendingLogits):
        return max(1, logits_at_once // output.head.vocabulary)
    return max(1, logits_at_once // output.shape[-1])


def _losses_in_pieces(
    output: PendingLogits | torch.Tensor, targets: Targets, logits_at_once: int
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Which of the targets, their logits in float32 and their losses, a piece at a time."""
    for piece, found in logits_in_pieces(output, targets.positions, logits_at_once):
        logits, tokens = found.float(), targets.tokens[piece]
        yield piece, logits, functional.cross_entropy(logits, tokens, reduction="none")


def target_losses(
    output: PendingLogits | torch.Tensor,
    targets: Targets,
    *,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> torch.Tensor:
    """The negative log-likelihood of each target in nats, float32 [targets].

    Args:
        output: Of a `ScoringLayer`; or logits [micro_batch, sequence, vocabulary].
        targets: Of this micro-batch.
        logits_at_once: See `logits_in_pieces`.
    """
    losses = torch.empty(len(targets), dtype=torch.float32, device=targets.tokens.device)
    for piece, _, found in _losses_in_pieces(output, targets, logits_at_once):
        losses[piece] = found
    return losses


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
        logits_at_once: See `logits_in_pieces`.
    """
    targets = Targets.of(labels)
    log_probs = torch.zeros(labels.numel(), dtype=torch.float32, device=labels.device)
    greedy = torch.ones(labels.numel(), dtype=torch.bool, device=labels.device)
    for piece, logits, losses in _losses_in_pieces(output, targets, logits_at_once):
        at = targets.positions[piece]
        log_probs[at] = -losses
        greedy[at] = logits.argmax(-1) == targets.tokens[piece]
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
