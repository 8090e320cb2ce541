"""The setup of an evaluator: what its evaluations have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from runtime.data.micro_batches import Fetching
from runtime.data.samples import WeightFunction
from runtime.execution.listeners import Listener
from runtime.modules.division import Division
from runtime.modules.found_modules import modules_in
from runtime.modules.weights.agreement import RankWeights
from runtime.outputs.metrics import Metrics
from runtime.outputs.options import EvalOptions
from runtime.outputs.values import LossFunction
from runtime.planning.autotuning import Overlap
from runtime.planning.sources import PlanSource
from runtime.recording.recorder import Recorder


@dataclass(frozen=True)
class Setup:
    """What is evaluated on one rank, what is computed from it, and how."""

    modules: Mapping[int, nn.Module]
    """The layers of each stage that this rank holds."""
    plans: PlanSource
    """Where plans come from."""
    division: Division
    """How the layers are divided into stages, and these are placed on ranks."""
    weights: RankWeights
    loss_fn: LossFunction | None
    metrics: Metrics
    weight_fn: WeightFunction | None
    """`None`: by samples, where these are certain."""
    keyword_inputs: bool
    fetching: Fetching
    overlap: Overlap
    dynamic_shapes: bool
    """Whether every activation brings its shape along."""
    cuda_graphs: bool
    """Whether forwards are captured and replayed."""
    check_data: bool
    check_finite: bool
    listeners: Sequence[Listener]
    """Told about every instruction."""
    recorder: Recorder | None
    """Told first, so that whatever a listener does is on file."""

    @property
    def compares_data(self) -> bool:
        """Whether the ranks that read micro-batches compare fingerprints of them."""
        return self.check_data and self.division.ranks > 1

    def evaluated(self, options: EvalOptions, *, last: bool) -> list[nn.Module]:
        """What has to be in evaluation mode: the layers, and what their outputs are given to."""
        given = (self.loss_fn, self.metrics, self.weight_fn, options.logits_fn)
        return [*self.modules.values(), *(modules_in(*given) if last else ())]

    @property
    def computes_something(self) -> bool:
        """Whether there is a loss or a metric."""
        return self.loss_fn is not None or bool(self.metrics.functions) or bool(self.metrics)
