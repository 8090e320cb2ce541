"""A stage: its layers, and on the last one what is computed from their outputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from runtime.outputs.logits import LogitsFunction
from runtime.outputs.metrics import StatefulMetrics
from runtime.outputs.results import Results
from runtime.outputs.values import Measure

WeightFunction = Callable[[Any], "float | torch.Tensor"]
"""`label -> weight` of a micro-batch in the average."""


@dataclass(frozen=True)
class LastStage:
    """A last stage's forward: the layers, then what is made of their output and the label."""

    module: Callable[[Any], Any]
    results: Results
    weigh: Callable[[int, Any], "float | torch.Tensor"]
    """`(micro_batch, label) -> weight`."""
    measure: Measure | None = None
    """Losses and metrics; `None`: none are computed."""
    metrics: StatefulMetrics | None = None
    logits_fn: LogitsFunction | None = None
    """What is handed out in place of the output."""
    weighed: Callable[["float | torch.Tensor"], None] = lambda _: None
    """Told the weight of each micro-batch whose losses were recorded."""

    def __call__(self, micro_batch: int, inputs: Any, label: Any) -> Any:
        """Run the layers on `inputs`, record the losses and feed the metrics."""
        output = self.module(inputs)
        if self.measure is not None:
            values, weight = self.measure(output, label), self.weigh(micro_batch, label)
            self.weighed(weight)
            self.results.record(values, weight)
        if self.metrics is not None:
            self.metrics.update(output, label)
        return output if self.logits_fn is None else self.logits_fn(output, label)
