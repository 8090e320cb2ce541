"""Layers are divided so that no stage is dearer than it has to be."""

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from runtime import Evaluator, LayerSpec, PartitionError, RemoteError, TiedLayerSpec
from runtime.modules.partition import balanced, divide, explicit, parameter_counts, uniform
from runtime.testing import InMemoryTransport, run_threads


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
    layers: list = [nn.Linear(4, 4), nn.ReLU(), LayerSpec(nn.Linear, 4, 4)]
    assert divide(layers, 2, "type:lin.*r$") in [(0, 1, 3), (0, 2, 3)]
    assert divide(layers, 2, "type:ReLU") in [(0, 1, 3), (0, 2, 3)]
    assert divide(layers, 2, "profile", lambda: [1.0, 1.0, 5.0]) == (0, 2, 3)
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


def test_a_regular_expression_that_matches_nothing_or_is_none_is_refused():
    layers = [nn.ReLU(), LayerSpec(nn.Linear, 1, 1)]
    with pytest.raises(PartitionError, match="'type:Block', but the layers are Linear, ReLU"):
        divide(layers, 1, "type:Block")
    with pytest.raises(PartitionError, match=r"'type:\(', needed a regular expression: missing"):
        divide(layers, 1, "type:(")


def test_parameters_of_specifications_are_counted_without_memory_or_random_numbers():
    small = nn.Linear(2, 3)
    state = torch.get_rng_state()
    huge = LayerSpec(nn.Linear, 10**7, 10**7)
    tied = TiedLayerSpec("w", nn.Linear, 10**6, 10**6)
    assert parameter_counts([huge, tied, small]) == [10**14 + 10**7, 10**12 + 10**6, 9]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_specification_that_needs_memory_cannot_be_counted():
    def reads() -> nn.Module:
        return nn.Linear(int(torch.ones(1)), 1)

    with pytest.raises(PartitionError) as caught:
        parameter_counts([nn.ReLU(), LayerSpec(reads)])
    message = str(caught.value)
    assert "the parameters of layer 1, LayerSpec(reads), cannot be counted" in message
    assert "needed another partition" in message


class Slow(nn.Module):
    """Takes some seconds by its own account, on the clock that the test sets."""

    now = 0.0

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training
        Slow.now += self.seconds
        return x.add_(1)


def test_layers_are_divided_by_their_measured_time_the_same_way_on_every_stage(monkeypatch):
    monkeypatch.setattr("runtime.device.time.perf_counter", lambda: Slow.now)
    sample = torch.zeros(2)

    def layers() -> list:
        return [Slow(1.0), LayerSpec(Slow, 1.0), Slow(1.0), Slow(5.0), Slow(1.0)]

    def stage(end: InMemoryTransport) -> tuple[int, ...]:
        own = sample if (end.rank, end.replica) == (0, 0) else None
        evaluator = Evaluator(layers(), transport=end, partition="profile", sample_inputs=own)
        return evaluator.boundaries

    assert run_threads(3, stage, replicas=2) == [(0, 3, 4, 5)] * 6
    assert torch.equal(sample, torch.zeros(2))


def profile_error(layers: list, sample: object) -> list[Exception]:
    def stage(end: InMemoryTransport) -> Exception:
        with pytest.raises((PartitionError, RuntimeError)) as caught:
            Evaluator(layers, transport=end, partition="profile", sample_inputs=sample)
        return caught.value

    return run_threads(2, stage)


def test_a_profile_needs_a_sample():
    for error in profile_error([nn.ReLU(), nn.ReLU()], None):
        assert isinstance(error, PartitionError)
        assert "needed sample_inputs on the first stage" in str(error)


def test_a_layer_that_cannot_be_profiled_is_an_error_on_every_rank():
    origin, told = profile_error([nn.ReLU(), nn.Linear(3, 3)], torch.zeros(2))
    assert "at rank 0, the profile of the layers" in origin.__notes__
    assert isinstance(told, RemoteError)
    assert told.failure.reason == str(origin)


class Remembering(nn.Module):
    """Counts its calls, and keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.weight = nn.Parameter(torch.ones(2))
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen.append(x)
        return x * self.weight


def test_a_profile_leaves_the_layers_as_they_were():
    layers = [Remembering(), Remembering().eval(), LayerSpec(Remembering)]
    modules = layers[:2]
    places = [module.weight.data_ptr() for module in modules]
    evaluator = Evaluator(layers, partition="profile", sample_inputs=torch.zeros(3, 2))
    assert [float(layer.calls) for layer in evaluator.module] == [0.0] * 3
    assert [layer.seen for layer in evaluator.module] == [[]] * 3
    assert [module.training for module in modules] == [True, False]
    assert [module.weight.data_ptr() for module in modules] == places
    assert list(evaluator.module)[:2] == modules


def test_a_layer_that_cannot_be_copied_cannot_be_profiled():
    class Unique(nn.Module):
        def __deepcopy__(self, _: dict) -> "Unique":
            raise ArithmeticError("there is only one")

    for error in profile_error([nn.ReLU(), Unique()], torch.zeros(2)):
        assert isinstance(error, PartitionError)
        assert "layer 1 of type Unique cannot be copied (there is only one), needed" in str(error)
