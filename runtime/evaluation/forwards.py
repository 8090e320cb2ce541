"""Forwards of an evaluation: what each stage of a rank does with a micro-batch."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from runtime.data.samples import require_weight
from runtime.data.stream import Stream
from runtime.evaluation.evaluation import Evaluation
from runtime.evaluation.setup import Setup
from runtime.execution.cuda_graphs import GraphedLayers, capture_on
from runtime.execution.forward import LastStageForward, StageForward
from runtime.execution.interpreter import Forward
from runtime.execution.transfers import Transfers
from runtime.outputs.nonfinite import FiniteCheck
from runtime.outputs.values import Measure


def forwards_of(
    setup: Setup,
    evaluation: Evaluation,
    stream: Stream,
    transfers: Transfers,
    finite: Mapping[int, FiniteCheck],
    device: torch.device,
) -> dict[int, Forward]:
    """What each stage of the rank does with a micro-batch."""
    options, modules = evaluation.options, setup.modules
    if setup.cuda_graphs:
        capture = capture_on(device)
        modules = {
            stage: GraphedLayers(stage, layers, device, capture)
            for stage, layers in modules.items()
        }
    forwards: dict[int, Forward] = {
        stage: StageForward(stage, layers, transfers, finite.get(stage))
        for stage, layers in modules.items()
    }
    last = setup.division.stages - 1
    if last in modules:
        measure = Measure(setup.loss_fn, setup.metrics.functions)
        forwards[last] = LastStageForward(
            modules[last],
            evaluation.results,
            _weigher(setup, evaluation, stream),
            measure=measure if options.compute_loss else None,
            logits_fn=options.logits_fn,
            finite=finite.get(last),
            is_first=last == 0,
        )
    return forwards


def _weigher(
    setup: Setup, evaluation: Evaluation, stream: Stream
) -> Callable[[int, Any], "float | torch.Tensor"]:
    weight_fn, weights = setup.weight_fn, evaluation.weights
    if weight_fn is not None:
        return lambda _, label: require_weight(weight_fn(label))

    def weigh(micro_batch: int, _: Any) -> float:
        inputs = stream.note(micro_batch)
        labels = stream.label_note(micro_batch)
        look = f"{inputs.look} {labels.label_look}"
        weight = weights.weight(inputs.samples, labels.label_samples, look)
        evaluation.results.losses.uncertain = weights.uncertain
        return weight

    return weigh
