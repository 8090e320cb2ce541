"""Forwards: what a stage does with a micro-batch, up to the losses and metrics of the last one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from runtime.execution.transfers import Transfers
from runtime.outputs.nonfinite import FiniteCheck
from runtime.outputs.options import LogitsFunction
from runtime.outputs.results import Results
from runtime.outputs.values import Measure


@dataclass(frozen=True)
class StageForward:
    """The forward of a stage whose outputs go to another one."""

    stage: int
    layers: nn.Module
    transfers: Transfers
    finite: FiniteCheck | None = None
    """Takes notes, where the stages look for the beginning of what is not finite."""

    def __call__(self, micro_batch: int, inputs: Any, _label: Any) -> Any:
        """Run the layers on `inputs`."""
        if self.finite is not None and self.stage == 0:
            self.finite.look_at_inputs(micro_batch, inputs)
        output = self.transfers.forward(self.stage, micro_batch, self.layers, inputs)
        if self.finite is not None:
            self.finite.look_at_output(micro_batch, output)
        return output


@dataclass(frozen=True)
class LastStageForward:
    """The forward of the last stage: the layers, and what is made of their output and the label."""

    layers: nn.Module
    results: Results
    weigh: Callable[[int, Any], "float | torch.Tensor"]
    """`(micro_batch, label) -> weight`."""
    measure: Measure | None = None
    """Losses and metrics; `None`: none are computed."""
    logits_fn: LogitsFunction | None = None
    """What is handed out in place of the output."""
    finite: FiniteCheck | None = None
    is_first: bool = False

    def __call__(self, micro_batch: int, inputs: Any, label: Any) -> Any:
        """Run the layers on `inputs`, record the losses and feed the metrics."""
        finite = self.finite
        if finite is not None and self.is_first:
            finite.look_at_inputs(micro_batch, inputs)
        output = self.layers(inputs)
        if finite is not None:
            finite.look_at_output(micro_batch, output)
        if self.measure is not None:
            values, weight = self.measure(output, label), self.weigh(micro_batch, label)
            if finite is not None:
                finite.look_at_loss(micro_batch, values.get("loss"), weight)
            self.results.losses.record(values, weight)
            self.results.metrics.update(output, label)
        return output if self.logits_fn is None else self.logits_fn(output, label)
