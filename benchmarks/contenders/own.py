"""The runtime of this project on the same stages."""

from copy import copy
from typing import Literal

from benchmarks.workload import Evaluated, Workload, loss_fn
from runtime import Evaluator
from runtime.transport import Channels, Transport
from schemas import PipelinePlan


class Own:
    """An evaluator over the workload's layers."""

    def __init__(
        self,
        workload: Workload,
        overlap: bool | Literal["auto"],
        transport: Transport | None = None,
        channels: Channels | None = None,
        plan: PipelinePlan | None = None,
    ) -> None:
        """Take this process's stage."""
        self._data = workload.data
        self._evaluator = Evaluator(
            workload.layers,
            loss_fn=loss_fn,
            weight_fn=lambda _label: 1.0,
            stages=workload.setting.stages,
            plan=plan,
            partition=workload.boundaries,
            micro_batches=len(workload.data),
            overlap=overlap,
            transport=transport,
            channels=channels,
        )

    def over(self, workload: Workload) -> "Own":
        """The same evaluator over other data for the same number of micro-batches."""
        other = copy(self)
        other._data = workload.data
        return other

    def __call__(self, *, keep_logits: bool = False) -> Evaluated | None:
        """Evaluate all micro-batches; the loss reaches every stage."""
        result = self._evaluator.eval_batch(iter(self._data), return_logits=keep_logits)
        if not self._evaluator.is_last:
            return None
        assert result.losses is not None
        return Evaluated(list(result.losses), list(result.logits) if result.logits else None)
