"""Layers are divided so that no stage is dearer than it has to be."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from runtime import PartitionError
from runtime.partition import balanced, divide, explicit, uniform


def dearest(costs: list[float], boundaries: tuple[int, ...]) -> float:
    return max(sum(costs[a:b]) for a, b in pairwise(boundaries))


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.data())
def test_no_other_division_has_a_cheaper_dearest_stage(costs, data):
    stages = data.draw(st.integers(1, len(costs)))
    found = balanced(costs, stages)
    inner = combinations(range(1, len(costs)), stages - 1)
    best = min(dearest(costs, (0, *cut, len(costs))) for cut in inner)
    assert dearest(costs, found) == best
    assert len(found) == stages + 1
    assert all(a < b for a, b in pairwise(found))


def test_a_large_head_gets_fewer_blocks_beside_it():
    costs = [0, *[3.5] * 30, 28]  # an embedding, 30 blocks, and a head as dear as 8 of them
    found = balanced(costs, 4)
    assert dearest(costs, found) == 35
    assert len(costs) - found[-2] <= 3


@given(st.integers(1, 30), st.data())
def test_uniform_stages_differ_by_one_layer_at_most(layers, data):
    stages = data.draw(st.integers(1, layers))
    sizes = [b - a for a, b in pairwise(uniform(layers, stages))]
    assert sum(sizes) == layers
    assert max(sizes) - min(sizes) <= 1


def test_divide_understands_rules_and_boundaries():
    layers = [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)]
    assert divide(layers, 2, "uniform") == (0, 2, 3)
    assert divide(layers, 2, "parameters") in [(0, 1, 3), (0, 2, 3)]
    assert divide(layers, 2, [0, 1, 3]) == (0, 1, 3)


def test_more_stages_than_layers_are_refused():
    for rule in (lambda: uniform(3, 4), lambda: balanced([1, 1, 1], 4)):
        with pytest.raises(PartitionError, match="4 stages for 3 layers, needed a layer for each"):
            rule()


@pytest.mark.parametrize("boundaries", [[0, 3], [1, 2, 3], [0, 2, 2, 3], [0, 2, 4], []])
def test_boundaries_that_do_not_fit_are_refused(boundaries):
    with pytest.raises(PartitionError, match="needed 3 increasing boundaries from 0 to 3"):
        explicit(boundaries, 3, 2)


def test_an_unknown_rule_is_refused():
    with pytest.raises(PartitionError, match="partition is 'best', needed 'parameters', 'uniform'"):
        divide([nn.ReLU()], 1, "best")
