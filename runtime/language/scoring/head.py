"""What the last stage of a pipeline that scores makes of a micro-batch.

The head of the model is applied only to the positions in question, a piece at a time, and of each
piece only what is asked stays: see `runtime.language.models.split.scores`.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from runtime.language.models import PendingLogits, logits_in_pieces
from runtime.language.models.split.scores import LOGITS_AT_ONCE, positions_at_once
from runtime.language.scoring.batching import Label


def answers(
    output: PendingLogits,
    label: Label,
    *,
    softmax_dtype: torch.dtype | None = None,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> torch.Tensor:
    """Answer the questions of a micro-batch.

    Args:
        output: Hidden states `[rows, sequence, hidden]`, with the head.
        label: The questions.
        softmax_dtype: Of log-probabilities; default: that of the logits.
        logits_at_once: See `logits_in_pieces`.

    Returns:
        float64 `[questions, 2]`: the log-probability of the target, and 1 where the target is the
        most probable token, else 0.
    """
    device, length = output.hidden.device, positions_at_once(output, logits_at_once)
    found = torch.zeros(len(label.targets), 2, dtype=torch.float64, device=device)
    starts = torch.arange(0, len(label.positions) + length, length, device=device)
    bounds: list[int] = torch.searchsorted(label.questions, starts).tolist()
    pieces = logits_in_pieces(output, label.positions, logits_at_once)
    for (piece, logits), (first, stop) in zip(pieces, pairwise(bounds), strict=True):
        log_probs = logits.log_softmax(dim=-1, dtype=softmax_dtype)
        at, targets = label.questions[first:stop] - piece.start, label.targets[first:stop]
        found[first:stop, 0] = log_probs[at, targets].double()
        found[first:stop, 1] = (log_probs.argmax(dim=-1)[at] == targets).double()
    return found


def next_tokens(
    output: PendingLogits, positions: torch.Tensor, *, logits_at_once: int = LOGITS_AT_ONCE
) -> torch.Tensor:
    """The most probable token after each of some positions.

    Args:
        output: Hidden states `[rows, sequence, hidden]`, with the head.
        positions: int64 `[positions]`, in the flattened micro-batch.
        logits_at_once: See `logits_in_pieces`.

    Returns:
        int64 `[positions]`.
    """
    pieces = logits_in_pieces(output, positions, logits_at_once)
    return torch.cat([logits.argmax(dim=-1) for _, logits in pieces])
