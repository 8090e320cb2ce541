"""Metrics: functions, which are reduced like the loss, and objects, which keep a state.

An object with the methods `update(output, label)`, `compute()` and `reset()` keeps a state, as the
metrics of torchmetrics do. It is fed every micro-batch on the last stage and computed at the end.
With data-parallel replicas, its state and theirs are merged first, by its own `merge_state`.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.utils import _pytree as pytree

from runtime.outputs.values import MetricFunction
from runtime.transport.protocol import Transport


class MetricError(ValueError):
    """Metrics that cannot be computed as asked."""


@runtime_checkable
class StatefulMetric(Protocol):
    """A metric that accumulates."""

    def update(self, output: Any, label: Any, /) -> Any:
        """Take a micro-batch in."""

    def compute(self) -> Any:
        """The metric over everything since the last reset."""

    def reset(self) -> Any:
        """Forget everything."""


Metric = StatefulMetric | MetricFunction


class Metrics:
    """The metrics of an evaluator; what is computed here is those that keep a state."""

    def __init__(self, metrics: Mapping[str, Metric], transport: Transport) -> None:
        """Move those that keep a state to the device, if they are modules.

        Raises:
            MetricError: one is neither a function nor keeps a state, or there are replicas, and it
                cannot merge their states.
        """
        self.functions: dict[str, MetricFunction] = {}
        """Those that are reduced like the loss. (Others may be callable, too.)"""
        self._metrics: dict[str, StatefulMetric] = {}
        self._transport = transport
        for name, metric in metrics.items():
            if isinstance(metric, StatefulMetric):
                self._metrics[name] = metric
            elif callable(metric):
                self.functions[name] = metric
            else:
                raise MetricError(
                    f"metric {name!r} is {metric!r}, needed a function (output, label) -> value or "
                    "an object with update, compute and reset"
                )
        for name, stateful in self._metrics.items():
            if transport.replicas > 1 and not hasattr(stateful, "merge_state"):
                raise MetricError(
                    f"metric {name!r} of type {type(stateful).__name__} has no merge_state, "
                    f"needed to combine its states in {transport.replicas} replicas"
                )
            if isinstance(stateful, nn.Module):
                stateful.to(transport.device)
        self.computed: dict[str, Any] = {}
        """What was computed last, on the stages that are to know it."""

    def __bool__(self) -> bool:
        """Whether one keeps a state."""
        return bool(self._metrics)

    def begin(self, *, fed: bool) -> None:
        """Begin an evaluation; the metrics are reset if they are to be `fed` here."""
        self.computed = {}
        for metric in self._metrics.values() if fed else ():
            metric.reset()

    def update(self, output: Any, label: Any) -> None:
        """Feed a micro-batch to all metrics."""
        for metric in self._metrics.values():
            metric.update(output, label)

    def compute(self) -> None:
        """Compute the metrics of this replica: floats, and tensors on the CPU."""
        self.computed = {name: _computed(metric) for name, metric in self._metrics.items()}

    def all_reduce(self) -> None:
        """Compute the metrics over all replicas, alike on all of them.

        Raises:
            MetricError: the states of a metric cannot be merged.
        """
        self.computed = {
            name: _computed(_merged(name, metric, self._transport))
            for name, metric in self._metrics.items()
        }

    def broadcast(self, source: int) -> None:
        """Hand what stage `source` has computed to all stages."""
        if self._metrics:
            self.computed = self._transport.gather_objects(self.computed)[source]


def _computed(metric: StatefulMetric) -> Any:
    with _alone(metric):
        return pytree.tree_map_only(torch.Tensor, _plain, metric.compute())


def _merged(name: str, metric: StatefulMetric, transport: Transport) -> StatefulMetric:
    """The metric with the states of all replicas, merged in their order, so alike on all."""
    states: list[Any] = transport.gather_from_replicas(_on_cpu(metric))
    whole = copy.deepcopy(states[0])  # threads that share memory gather the objects themselves
    for other in states[1:]:
        try:
            whole.merge_state(other)
        except Exception as error:
            raise MetricError(
                f"metric {name!r} of type {type(metric).__name__} cannot merge the states of "
                f"{len(states)} replicas: {error}"
            ) from error
    merged: StatefulMetric = whole
    return merged


def _on_cpu(metric: StatefulMetric) -> StatefulMetric:
    return copy.deepcopy(metric).cpu() if isinstance(metric, nn.Module) else metric


@contextmanager
def _alone(metric: StatefulMetric) -> Iterator[None]:
    """Keep torchmetrics from gathering over all processes: most never compute, so it would hang."""
    modules = metric.modules() if isinstance(metric, nn.Module) else ()
    asking: list[Any] = [m for m in modules if hasattr(m, "distributed_available_fn")]
    before = [module.distributed_available_fn for module in asking]
    for module in asking:
        module.distributed_available_fn = lambda: False
    try:
        yield
    finally:
        for module, function in zip(asking, before, strict=True):
            module.distributed_available_fn = function


def _plain(tensor: torch.Tensor) -> float | torch.Tensor:
    return float(tensor) if tensor.numel() == 1 else tensor.detach().cpu()
