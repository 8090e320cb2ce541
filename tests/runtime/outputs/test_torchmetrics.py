"""Metrics of torchmetrics: fed on the last stage, merged over replicas, the same everywhere."""

from typing import Any

import pytest
import torch
from torch import nn

from runtime import Evaluator
from runtime.testing import InMemoryTransport, run_threads
from tests.support.forks import launch_forks
from tests.support.models_for_tests import mlp
from tests.support.workers import evaluate_metrics

torchmetrics = pytest.importorskip("torchmetrics")
pytestmark = pytest.mark.filterwarnings("ignore")  # of classes without samples

Shard = list[tuple[torch.Tensor, torch.Tensor]]


def shard(sizes: list[int], seed: int) -> Shard:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, 4, generator=generator), torch.randint(0, 6, (n,), generator=generator))
        for n in sizes
    ]


def metrics() -> dict[str, Any]:
    """One that sums, one that keeps all outputs, and one that is a matrix."""
    classification = torchmetrics.classification
    return {
        "accuracy": classification.MulticlassAccuracy(6, average="micro"),
        "auroc": classification.MulticlassAUROC(6, average=None),
        "confusion": classification.MulticlassConfusionMatrix(6),
    }


def of_one_process(shards: list[Shard]) -> dict[str, torch.Tensor]:
    model, whole = nn.Sequential(*mlp()).eval(), metrics()
    with torch.no_grad():
        for inputs, labels in (pair for own in shards for pair in own):
            for metric in whole.values():
                metric.update(model(inputs), labels)
    return {name: metric.compute() for name, metric in whole.items()}


def test_replicas_give_what_one_process_gives():
    shards = [shard([3, 1, 4], 0), shard([2], 1), []]
    built = [(mlp(), metrics()) for _ in range(6)]

    def stage(end: InMemoryTransport) -> dict[str, Any]:
        layers, own = built[end.global_rank]
        evaluator = Evaluator(
            layers,
            loss_fn=nn.functional.cross_entropy,
            metrics=own,
            partition="uniform",
            transport=end,
        )
        evaluator.evaluate(shards[0])  # leaves nothing behind
        return evaluator.evaluate(iter(shards[end.replica])).metrics

    expected = of_one_process(shards)
    for found in run_threads(2, stage, replicas=3):
        assert found["accuracy"] == float(expected["accuracy"])
        assert torch.equal(found["auroc"], expected["auroc"])
        assert torch.equal(found["confusion"], expected["confusion"])


def test_between_processes_a_metric_does_not_wait_for_those_that_have_none():
    data = shard([3, 2], 0)
    expected = of_one_process([data])
    for found in launch_forks(2, evaluate_metrics, data):
        assert found["accuracy"] == float(expected["accuracy"])
