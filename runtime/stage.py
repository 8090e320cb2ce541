"""A stage: its layers, and on the last one what is computed from their outputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from runtime.logits import LogitsFunction
from runtime.metrics import StatefulMetrics
from runtime.results import Results
from runtime.values import Measure

WeightFunction = Callable[[Any], "float | torch.Tensor"]
"""`label -> weight` of a micro-batch in the average."""


def samples(label: Any) -> float:
    """The number of samples in a micro-batch: the first dimension of its (first) label tensor."""
    first = pytree.tree_leaves(label)[0]
    return float(first.shape[0]) if isinstance(first, torch.Tensor) and first.dim() else 1.0


@dataclass(frozen=True)
class LastStage:
    """A last stage's forward: the layers, then what is made of their output and the label."""

    module: nn.Module
    results: Results
    weight_fn: WeightFunction = samples
    measure: Measure | None = None
    """Losses and metrics; `None`: none are computed."""
    metrics: StatefulMetrics | None = None
    logits_fn: LogitsFunction | None = None
    """What is handed out in place of the output."""

    def __call__(self, _micro_batch: int, inputs: Any, label: Any) -> Any:
        """Run the layers on `inputs`, record the losses and feed the metrics."""
        output = self.module(inputs)
        if self.measure is not None:
            self.results.record(self.measure(output, label), self.weight_fn(label))
        if self.metrics is not None:
            self.metrics.update(output, label)
        return output if self.logits_fn is None else self.logits_fn(output, label)
