"""Tied layers have bit-equal weights on all their stages."""

from typing import Any

import pytest
import torch
from torch import nn

from runtime import AgreementError, EvalResult, Evaluator, LayerSpec, RemoteError, TiedLayerSpec
from tests.models_for_tests import over_stages

IDS = [torch.tensor([[1, 2, 3]]), torch.tensor([[4, 0, 1], [3, 3, 3]])]
DATA = [(ids, ids) for ids in IDS]


def unembed(embedding: nn.Embedding, hidden: torch.Tensor) -> torch.Tensor:
    return hidden @ embedding.weight.T


def loss_fn(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def specs() -> list[Any]:
    """An embedding that is the head as well; every process draws other weights."""
    return [
        TiedLayerSpec("embedding", nn.Embedding, 5, 4),
        nn.Tanh(),
        LayerSpec(nn.Identity),
        TiedLayerSpec("embedding", nn.Embedding, 5, 4, forward_fn=unembed),
    ]


def evaluate(ev: Evaluator) -> tuple[EvalResult, dict[str, torch.Tensor]]:
    result = ev.eval_batch(iter(DATA), return_logits=True, num_micro_batches=2)
    return result, {name: tensor.clone() for name, tensor in ev.module.state_dict().items()}


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_stages_with_one_key_get_the_weights_of_the_first(stages):
    results = over_stages(stages, evaluate, layers=specs, loss_fn=loss_fn)
    weight = results[0][1]["0.weight"]
    assert torch.equal(results[-1][1]["3.module.weight"], weight)
    expected = [torch.tanh(weight[ids]) @ weight.T for ids in IDS]
    assert all(map(torch.equal, results[-1][0].logits, expected))


def test_only_weights_that_differ_are_handed_over():
    torch.manual_seed(3)
    state = nn.Embedding(5, 4).state_dict()

    def same() -> list[Any]:
        def built(*size: int) -> nn.Embedding:
            embedding = nn.Embedding(*size)
            embedding.load_state_dict(state)
            return embedding

        tied = [
            TiedLayerSpec("e", built, 5, 4),
            TiedLayerSpec("e", built, 5, 4, forward_fn=unembed),
        ]
        return [tied[0], nn.Tanh(), tied[1]]

    def call(ev: Evaluator) -> int:
        return sum(parameter._version for parameter in ev.module.parameters())

    first, _, last = over_stages(3, call, layers=same, loss_fn=loss_fn)
    assert first == last  # as often written to as where it was only made


class Head(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.weight.T


def test_modules_that_hold_one_parameter_are_tied():
    def layers() -> list[nn.Module]:
        embedding = nn.Embedding(5, 4)
        return [embedding, nn.Tanh(), Head(embedding.weight)]

    first, _, last = over_stages(3, evaluate, layers=layers, loss_fn=loss_fn)
    assert torch.equal(first[1]["0.weight"], last[1]["2.weight"])


def test_a_module_that_occurs_twice_is_tied_to_itself():
    def layers() -> list[nn.Module]:
        twice = nn.Linear(4, 4)  # every process draws others
        torch.manual_seed(0)
        return [nn.Embedding(5, 4), twice, nn.Tanh(), twice, nn.Linear(4, 5)]

    states = [state for _, state in over_stages(5, evaluate, layers=layers, loss_fn=loss_fn)]
    assert torch.equal(states[1]["1.weight"], states[3]["3.weight"])
    assert torch.equal(states[1]["1.bias"], states[3]["3.bias"])


def test_tied_layers_of_different_shapes_are_refused_on_every_stage():
    layers = [TiedLayerSpec("w", nn.Linear, 2, 2), TiedLayerSpec("w", nn.Linear, 2, 3)]

    with pytest.raises(AgreementError, match=r"tied key 'w' is .* on stage 0, .* on stage 1"):
        over_stages(2, lambda ev: ev, layers=lambda: layers)


def test_a_tied_layer_that_cannot_be_built_is_an_error_on_every_stage():
    from runtime.transport import run_stages

    def fails() -> nn.Module:
        raise ArithmeticError("no weights today")

    layers = [TiedLayerSpec("w", nn.Identity), TiedLayerSpec("w", fails)]

    def stage(end: Any) -> Exception:
        with pytest.raises((ArithmeticError, RemoteError)) as caught:
            Evaluator(layers, transport=end, partition="uniform")
        return caught.value

    remote, origin = run_stages(2, stage)
    assert isinstance(origin, ArithmeticError)
    assert "stage 1 failed at the building of tied layers" in str(remote)
    assert "no weights today" in str(remote)
