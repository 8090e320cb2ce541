"""Specifications are built as one process builds them, on their own stage only."""

from typing import Any

import pytest
import torch
from torch import nn

from runtime import Evaluator, LayerSpec, RemoteError, TiedLayerSpec
from runtime.modules.layers import LayersError
from runtime.testing import run_threads
from tests.support.forks import launch_forks
from tests.support.models_for_tests import mlp, over_stages
from tests.support.workers import build_alike


def unlike(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return x @ module.weight


def specs() -> list[Any]:
    """Layers that draw, or do not, in all ways; tied ones among them."""

    def with_a_seed_of_its_own() -> nn.Module:
        torch.manual_seed(7)
        return nn.Linear(4, 4)

    def aside() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            return nn.Linear(4, 4)

    def from_a_generator() -> nn.Module:
        layer = nn.Linear(4, 4, device="meta").to_empty(device="cpu")
        generator = torch.Generator().manual_seed(3)
        for parameter in layer.parameters():
            nn.init.normal_(parameter, generator=generator)
        return layer

    return [
        LayerSpec(nn.Tanh),
        TiedLayerSpec("w", nn.Linear, 4, 4),
        LayerSpec(nn.Linear, 4, 4),
        LayerSpec(aside),
        LayerSpec(nn.Linear, 4, 4),
        TiedLayerSpec("w", nn.Linear, 4, 4, forward_fn=unlike),
        LayerSpec(nn.Linear, 4, 4),
        LayerSpec(from_a_generator),
        LayerSpec(with_a_seed_of_its_own),
        LayerSpec(nn.Linear, 4, 4),
    ]


def built_by_hand() -> tuple[list[torch.Tensor], torch.Tensor]:
    """The weights and the state of the generator of one process that knows of no stages."""
    torch.manual_seed(5)
    tied, layers = None, []
    for spec in specs():
        if isinstance(spec, TiedLayerSpec):
            tied = tied or spec.build()
            layers.append(tied)
        else:
            layers.append(spec.build())
    return [t for layer in layers for t in layer.state_dict().values()], torch.get_rng_state()


@pytest.mark.parametrize("boundaries", [[0, 10], [0, 5, 10], [0, 1, 10], [0, 3, 5, 10]])
@pytest.mark.parametrize("replicas", [1, 2])
def test_the_same_seed_gives_the_same_model_for_any_number_of_stages(boundaries, replicas):
    expected, generator = built_by_hand()
    torch.manual_seed(5)

    def call(ev: Evaluator, *_: Any) -> list[torch.Tensor]:
        return list(ev.module.state_dict().values())

    stages = len(boundaries) - 1
    found = over_stages(stages, call, layers=specs, partition=boundaries, replicas=replicas)
    for replica in range(replicas):
        own = found[replica * stages : (replica + 1) * stages]
        assert all(map(torch.equal, (t for state in own for t in state), expected))
    assert torch.equal(torch.get_rng_state(), generator)


def test_processes_draw_in_turn_and_build_at_once_what_draws_nothing():
    expected, generator = built_by_hand()
    ranks = launch_forks(3, build_alike, [0, 3, 5, 10])
    states = [tensor for state, _, _ in ranks for tensor in state]
    assert all(map(torch.equal, states, expected))
    assert all(torch.equal(after, generator) for _, after, _ in ranks)
    # Without the seed of the first stage, a generator is left as it was.
    assert [unseeded for _, _, unseeded in ranks] == [True] * 3


def test_a_stage_that_cannot_be_built_is_an_error_on_all():
    def fails() -> nn.Module:
        raise ArithmeticError("no layer today")

    def stage(end: Any) -> Exception:
        layers = [LayerSpec(nn.Linear, 2, 2), LayerSpec(fails), LayerSpec(nn.Linear, 2, 2)]
        with pytest.raises((ArithmeticError, RemoteError)) as caught:
            Evaluator(layers, transport=end, partition="uniform")
        return caught.value

    first, origin, last = run_threads(3, stage)
    assert isinstance(origin, ArithmeticError)
    for error in (first, last):
        assert "stage 1 failed at the building of layers: ArithmeticError: no layer" in str(error)


def test_what_is_no_list_of_layers_is_refused_in_one_sentence():
    class Model(nn.Module):
        pass

    cases = [
        (Model(), "layers is a whole model of type Model, needed a list of its layers or an nn"),
        ((layer for layer in mlp()), "layers is of type generator, needed a list of modules"),
        ({"a": nn.Tanh()}, "layers is of type dict, needed a list of modules and LayerSpecs"),
        (None, "layers is of type NoneType, needed a list"),
        ("layers", "layers is of type str, needed a list"),
        ([nn.Tanh(), nn.Tanh], "layer 1 is <class 'torch.nn.modules.activation.Tanh'>, needed an"),
        (
            [nn.Tanh(), None],
            "layer 1 is None, needed an nn.Module, a function of a micro-batch, or",
        ),
        ([nn.Tanh().forward], "layer 0 is a method of a Tanh, whose weights a function would hide"),
    ]
    for layers, message in cases:
        with pytest.raises(LayersError) as caught:
            Evaluator(layers)
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)


def test_a_module_list_is_a_list_of_layers():
    assert list(Evaluator(nn.ModuleList(mlp())).module.state_dict()) == list(
        nn.Sequential(*mlp()).state_dict()
    )
