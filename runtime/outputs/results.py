"""The results of an evaluation on one stage: what the interpreter's epilogue works on."""

from collections.abc import Callable
from typing import Any

import torch

from runtime.outputs.logits import Logits, LogitsWish
from runtime.outputs.losses import Losses
from runtime.outputs.metrics import StatefulMetrics
from runtime.outputs.values import Layout
from runtime.transport.protocol import Transport
from schemas import Reduction


class Results:
    """Losses, metrics and logits of an evaluation, which may take several runs of the pipeline."""

    def __init__(
        self,
        device: torch.device,
        *,
        wish: LogitsWish | None = None,
        metrics: StatefulMetrics | None = None,
        layout: Layout | None = None,
    ) -> None:
        """Begin an evaluation.

        Args:
            device: Where losses and logits come into being.
            wish: What becomes of the logits; default: they are let go.
            metrics: Those that keep a state.
            layout: How losses and metrics are nested, if all stages know it.
        """
        self.losses = Losses(device, layout)
        self.logits = Logits(wish or LogitsWish(), device)
        self._metrics = metrics
        self.computed: dict[str, Any] | None = None
        """The metrics that keep a state, as far as this stage is to know them."""

    def expect(self, micro_batches: int) -> None:
        """Go on with a run of so many micro-batches."""
        self.losses.expect(micro_batches)

    def record(self, values: dict[str, Any], weight: float | torch.Tensor) -> None:
        """Note losses and metrics of the next micro-batch, and its weight in the average."""
        self.losses.record(values, weight)

    def deliver(self, holder: list[Any], own: Callable[[list[Any]], Any]) -> None:
        """Take the output of the next micro-batch out of `holder`; see `Logits.deliver`."""
        self.logits.deliver(holder, own)

    def reduce(self, reduction: Reduction) -> None:
        """Reduce the losses on the stage that computed them."""
        self.losses.reduce(reduction)

    def all_reduce(self, transport: Transport) -> None:
        """Extend the reduced losses over the data-parallel replicas."""
        self.losses.all_reduce(transport)

    def compute_metrics(self) -> None:
        """Compute the metrics that keep a state."""
        assert self._metrics is not None
        self.computed = self._metrics.compute()

    def all_reduce_metrics(self, transport: Transport) -> None:
        """Compute the metrics that keep a state, over the data-parallel replicas."""
        assert self._metrics is not None
        self.computed = self._metrics.compute_over_replicas(transport)

    def broadcast(self, transport: Transport, source: int) -> None:
        """Hand losses and metrics of stage `source` to all stages."""
        self.losses.broadcast(transport, source)
        if self._metrics:
            self.computed = transport.gather_objects(self.computed)[source]

    def collect_logits(self) -> None:
        """Hand the logits out where they are."""
        self.logits.collect()

    def move_logits(self, transport: Transport, source: int, destination: int) -> None:
        """Hand the logits of stage `source` out on stage `destination`."""
        self.logits.move(transport, source, destination)

    def broadcast_logits(self, transport: Transport, source: int) -> None:
        """Hand the logits of stage `source` out on all stages."""
        self.logits.broadcast(transport, source)
