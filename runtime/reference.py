"""The reference: the unsplit model in one process, and how to tell that logits are the same."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import torch
from torch import nn

from runtime.modes import evaluating
from runtime.stage import WeightFunction
from runtime.sums import weighted_average
from runtime.values import LossFunction


def digest(logits: torch.Tensor) -> str:
    """SHA-256 of a tensor's shape and bits: equal exactly for bit-identical tensors."""
    content = logits.detach().cpu().contiguous()
    header = f"{content.dtype} {list(content.shape)}".encode()
    return sha256(header + content.view(torch.uint8).numpy().tobytes()).hexdigest()


@dataclass
class LogitsDigests:
    """A callback that notes the digest of every micro-batch's logits."""

    digests: list[str] = field(default_factory=list)

    def __call__(self, micro_batch: int, logits: Any) -> None:
        """Note the digest of the next micro-batch."""
        assert micro_batch == len(self.digests)
        self.digests.append(digest(logits))


@dataclass(frozen=True)
class Reference:
    """What one process computes."""

    loss: float
    digests: list[str]


def reference(
    model: nn.Module,
    micro_batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    loss_fn: LossFunction,
    weight_fn: WeightFunction,
) -> Reference:
    """Evaluate an unsplit causal language model, one micro-batch after the other.

    Args:
        model: A causal language model of transformers.
        micro_batches: Inputs and labels, int64 `[micro_batch_size, sequence]`.
        loss_fn: As of the evaluator.
        weight_fn: As of the evaluator.
    """
    digests = LogitsDigests()
    losses, weights = [], []
    with evaluating(model):
        for number, (inputs, labels) in enumerate(micro_batches):
            logits = model(input_ids=inputs, use_cache=False).logits
            losses.append(float(loss_fn(logits, labels)))
            weights.append(float(weight_fn(labels)))
            digests(number, logits)
    return Reference(weighted_average(losses, weights), digests.digests)
