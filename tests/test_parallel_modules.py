"""Stages whose modules are parallel in themselves: tensor parallelism and FSDP beside pipelines."""

from itertools import chain

import pytest

from runtime.launch import launch
from tests.models_for_tests import Data, batches, one_process
from tests.workers import blocks, evaluate_sharded, evaluate_tensor_parallel


def loss_of_one_process(data: Data) -> float:
    _, losses = one_process(blocks(), data)
    weights = [len(inputs) for inputs, _ in data]
    return sum(n * loss for n, loss in zip(weights, losses, strict=True)) / sum(weights)


def square(data: Data) -> Data:
    """The data with labels as wide as what the blocks give."""
    return [(inputs, inputs.flip(0)) for inputs, _ in data]


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_tensor_parallel_layers_give_the_loss_of_one_process_on_every_rank():
    data = square(batches([2, 3, 2]))
    expected = loss_of_one_process(data)
    assert launch(4, evaluate_tensor_parallel, data) == pytest.approx([expected] * 4, rel=1e-6)


def test_sharded_weights_go_with_replicas_whose_shapes_differ():
    """Each replica has other shapes to rehearse, and all have to gather weights equally often."""
    shards = [square(batches([2, 3, 1], seed=1)), square(batches([2, 2, 2], seed=2))]
    expected = loss_of_one_process(list(chain(*shards)))
    assert launch(4, evaluate_sharded, shards) == pytest.approx([expected] * 4, rel=1e-6)
