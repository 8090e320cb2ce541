"""The reference: the unsplit model in one process, and how to tell that logits are the same."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain
from typing import Any

import torch
from torch import nn

from runtime.data.samples import WeightFunction
from runtime.modules.modes import evaluating
from runtime.outputs.exact_sums import weighted_average
from runtime.outputs.values import LossFunction


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


ALIGNMENT = 64
"""Bytes to which torch aligns the memory of tensors on a CPU."""


def reference(
    model: nn.Module,
    micro_batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    loss_fn: LossFunction,
    weight_fn: WeightFunction,
    device: torch.device | None = None,
) -> Reference:
    """Evaluate an unsplit causal language model, one micro-batch after the other.

    Args:
        model: A causal language model of transformers.
        micro_batches: Inputs and labels, int64 `[micro_batch_size, sequence]`.
        loss_fn: As of the evaluator.
        weight_fn: As of the evaluator.
        device: Where to: that of the stages, since kernels of another one round otherwise; default:
            the CPU.
    """
    device = device or torch.device("cpu")
    model.to(device)
    _align(model)
    digests = LogitsDigests()
    losses, weights = [], []
    with evaluating(model):
        for number, pair in enumerate(micro_batches):
            inputs, labels = (tensor.to(device) for tensor in pair)
            logits = model(input_ids=inputs, use_cache=False).logits
            losses.append(float(loss_fn(logits, labels)))
            weights.append(float(weight_fn(labels)))
            digests(number, logits)
    return Reference(weighted_average(losses, weights), digests.digests)


def _align(model: nn.Module) -> None:
    """Move weights that lie in a mapped file, at any offset, to where a stage's own would be.

    Where a matrix begins decides how kernels divide its rows into vectors, and so the last bits of
    products with a single row.
    """
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
