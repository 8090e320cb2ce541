"""Layers are built on their own stage only, and keep the names of the whole model."""

from collections import OrderedDict
from functools import partial

import pytest
import torch
from torch import nn

from runtime.modules.layers import FunctionLayer, LayerSpec, TiedLayerSpec, build_stage, type_name


class Counted(nn.Linear):
    built = 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        Counted.built += 1


def test_a_specification_is_built_on_its_own_stage_only():
    Counted.built = 0
    layers = [LayerSpec(Counted, 2, 2, bias=False) for _ in range(5)]
    stage = build_stage(layers, 1, 3)
    assert Counted.built == 2
    assert list(stage.state_dict()) == ["1.weight", "2.weight"]


def test_modules_and_specifications_may_be_mixed():
    first = nn.Linear(2, 3)
    stage = build_stage([first, LayerSpec(nn.Linear, 3, 1), nn.Tanh()], 0, 3)
    assert stage[0] is first
    x = torch.randn(4, 2)
    assert torch.equal(stage(x), torch.tanh(stage[1](first(x))))


def test_names_are_those_of_the_unsplit_sequential():
    def model() -> nn.Sequential:
        named = OrderedDict(embed=nn.Linear(2, 2), act=nn.Tanh(), head=nn.Linear(2, 2))
        return nn.Sequential(named)

    stages = [build_stage(model(), 0, 2), build_stage(model(), 2, 3)]
    states = [name for stage in stages for name in stage.state_dict()]
    assert states == list(model().state_dict())


def test_layers_with_one_key_are_one_module_on_a_stage_used_in_two_ways():
    def transposed(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        return x @ module.weight

    layers = [
        TiedLayerSpec("w", nn.Linear, 2, 3, bias=False),
        TiedLayerSpec("w", nn.Linear, 2, 3, bias=False, forward_fn=transposed),
        TiedLayerSpec("other", nn.Linear, 2, 3, bias=False),
    ]
    stage = build_stage(layers, 0, 3)
    assert stage[1].module is stage[0]
    assert stage[2] is not stage[0]
    x = torch.randn(4, 2)
    assert torch.equal(stage[1](stage[0](x)), x @ stage[0].weight.T @ stage[0].weight)


def test_keyword_inputs_reach_the_first_layer_of_the_first_stage_only():
    class Add(nn.Module):
        def forward(self, *, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"sum": left + right}

    class Read(nn.Module):
        def forward(self, x: dict[str, torch.Tensor]) -> torch.Tensor:
            return x["sum"]

    layers = [Add(), Read()]
    both = build_stage(layers, 0, 2, keyword_inputs=True)
    inputs = {"left": torch.ones(2), "right": torch.ones(2)}
    assert torch.equal(both(inputs), torch.full((2,), 2.0))
    second = build_stage(layers, 1, 2, keyword_inputs=True)
    assert torch.equal(second({"sum": torch.ones(2)}), torch.ones(2))


def test_the_layer_that_cannot_be_built_is_named():
    with pytest.raises(TypeError) as caught:
        build_stage([nn.Tanh(), LayerSpec(nn.Linear, 2)], 0, 2)
    assert caught.value.__notes__ == ["when layer 1 was built: LayerSpec(Linear, 2)"]
    with pytest.raises(TypeError, match=r"LayerSpec\(int, 3\) returned 3, needed an nn\.Module"):
        LayerSpec(int, 3).build()
    with pytest.raises(TypeError, match="factory is 3, needed a class or function"):
        LayerSpec(3)


def test_type_names_are_those_of_classes():
    assert type_name(nn.Tanh()) == "Tanh"
    assert type_name(LayerSpec(nn.Linear, 2, 2)) == "Linear"
    assert type_name(LayerSpec(partial(nn.Linear, 2), 2)) == "Linear"
    assert type_name(FunctionLayer(partial(nn.functional.relu, inplace=True))) == "relu"
    assert repr(TiedLayerSpec("k", nn.Linear, 2, out_features=3)) == (
        "TiedLayerSpec(Linear, 2, out_features=3)"
    )
