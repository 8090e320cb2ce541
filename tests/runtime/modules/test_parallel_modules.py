"""Stages whose modules are parallel in themselves: tensor parallelism and FSDP beside pipelines."""

from itertools import chain

import pytest

from tests.support.forks import launch_forks
from tests.support.models_for_tests import Data, batches, one_process
from tests.support.workers import blocks, evaluate_parallel_modules


def square(data: Data) -> Data:
    """The data with labels as wide as what the blocks give."""
    return [(inputs, inputs.flip(0)) for inputs, _ in data]


DATA = square(batches([2, 3, 2]))
SHARDS = [square(batches([2, 3, 1], seed=1)), square(batches([2, 2, 2], seed=2))]
"""Replicas have other shapes, and gather weights equally often."""


@pytest.fixture(scope="module")
def losses() -> tuple[list[float], list[float]]:
    return launch_forks(4, evaluate_parallel_modules, (DATA, SHARDS))


def loss_of_one_process(data: Data) -> float:
    _, losses = one_process(blocks(), data)
    weights = [len(inputs) for inputs, _ in data]
    return sum(n * loss for n, loss in zip(weights, losses, strict=True)) / sum(weights)


def test_tensor_parallel_layers_give_the_loss_of_one_process_on_every_rank(losses):
    assert losses[0] == pytest.approx([loss_of_one_process(DATA)] * 4, rel=1e-6)


def test_sharded_weights_go_with_replicas_whose_shapes_differ(losses):
    expected = loss_of_one_process(list(chain(*SHARDS)))
    assert losses[1] == pytest.approx([expected] * 4, rel=1e-6)
