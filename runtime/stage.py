"""A stage: a run of consecutive layers, and on the last one the loss."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from runtime.results import Results

LossFunction = Callable[[Any, Any], torch.Tensor]
"""`(output, label) -> loss`, a scalar."""

WeightFunction = Callable[[Any], float]
"""`label -> weight` of a micro-batch in the average."""


def samples(label: Any) -> float:
    """The number of samples in a micro-batch: the first dimension of its (first) label tensor."""
    first = pytree.tree_leaves(label)[0]
    return float(first.shape[0]) if isinstance(first, torch.Tensor) and first.dim() else 1.0


@dataclass(frozen=True)
class WithLoss:
    """A last stage's forward: the layers, then the loss of what they make of the micro-batch."""

    module: nn.Module
    results: Results
    loss_fn: LossFunction
    weight_fn: WeightFunction

    def __call__(self, micro_batch: int, inputs: Any, label: Any) -> Any:
        """Run the layers on `inputs` and record the loss."""
        output = self.module(inputs)
        loss = self.loss_fn(output, label)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            found = f"shape {list(loss.shape)}" if isinstance(loss, torch.Tensor) else repr(loss)
            raise ValueError(f"loss_fn returned {found}, needed a tensor with one element")
        self.results.record(micro_batch, loss.reshape(()), self.weight_fn(label))
        return output


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; afterwards everything as it was."""
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in training.items():
            part.training = mode
