"""Tied layers have bit-equal weights on all their stages."""

from typing import Any

import pytest
import torch
from torch import nn

from runtime import AgreementError, EvalResult, Evaluator, LayerSpec, RemoteError, TiedLayerSpec
from tests.support.models_for_tests import over_stages

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
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight) if type(weight) is torch.Tensor else weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.weight.T


def test_modules_that_hold_one_parameter_are_tied():
    def layers() -> list[nn.Module]:
        embedding = nn.Embedding(5, 4)
        return [embedding, nn.Tanh(), Head(embedding.weight)]

    first, _, last = over_stages(3, evaluate, layers=layers, loss_fn=loss_fn)
    assert torch.equal(first[1]["0.weight"], last[1]["2.weight"])


def test_parameters_that_lie_in_the_same_memory_are_tied():
    new = torch.linspace(-1, 1, 20).reshape(5, 4)

    def layers() -> list[nn.Module]:
        torch.manual_seed(0)
        embedding = nn.Embedding(5, 4)
        return [embedding, nn.Tanh(), Head(nn.Parameter(embedding.weight.data))]

    def call(ev: Evaluator) -> torch.Tensor:
        ev.evaluate(DATA)
        if ev.is_first:
            with torch.no_grad():
                ev.module[0].weight.copy_(new)
        ev.evaluate(DATA)
        return getattr(ev.module[0], "weight", None)

    first, _, last = over_stages(3, call, layers=layers, loss_fn=loss_fn)
    assert torch.equal(first, new)
    assert torch.equal(last, new)


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
    from runtime.testing import run_threads

    def fails() -> nn.Module:
        raise ArithmeticError("no weights today")

    layers = [TiedLayerSpec("w", nn.Identity), TiedLayerSpec("w", fails)]

    def stage(end: Any) -> Exception:
        with pytest.raises((ArithmeticError, RemoteError)) as caught:
            Evaluator(layers, transport=end, partition="uniform")
        return caught.value

    remote, origin = run_threads(2, stage)
    assert isinstance(origin, ArithmeticError)
    assert "stage 1 failed at the building of tied layers" in str(remote)
    assert "no weights today" in str(remote)


NEW = torch.linspace(-1, 1, 20).reshape(5, 4)


def head_and_embedding(seed: int = 0) -> list[nn.Module]:
    torch.manual_seed(seed)
    embedding = nn.Embedding(5, 4)
    return [embedding, nn.Tanh(), Head(embedding.weight)]


def seeded_specs() -> list[Any]:
    """Like `specs`, with weights that are the same on every process."""

    def made() -> nn.Embedding:
        return nn.Embedding(5, 4, _weight=NEW.flip(0).clone())

    tied = [TiedLayerSpec("e", made), TiedLayerSpec("e", made, forward_fn=unembed)]
    return [tied[0], nn.Tanh(), tied[1]]


def copy_(weight: torch.Tensor) -> None:
    with torch.no_grad():
        weight.copy_(NEW)


def behind_the_back(weight: torch.Tensor) -> None:
    weight.data[3:].copy_(NEW[3:])  # which no version counter tells of


def weights(ev: Evaluator) -> list[torch.Tensor]:
    return [tensor for name, tensor in ev.module.named_parameters() if name.endswith("weight")]


def evaluated(ev: Evaluator) -> tuple[float | None, tuple[torch.Tensor, ...] | None]:
    result = ev.eval_batch(iter(DATA), return_logits=True, logits_to="all", num_micro_batches=2)
    return result.loss, result.logits


@pytest.mark.parametrize("layers", [head_and_embedding, seeded_specs])
@pytest.mark.parametrize("change", [copy_, behind_the_back])
@pytest.mark.parametrize("at", ["first", "last", "both"])
@pytest.mark.parametrize("overlap", [False, True])
def test_ties_hold_for_weights_that_are_changed_between_evaluations(layers, change, at, overlap):
    def call(ev: Evaluator) -> list[Any]:
        found = [evaluated(ev)]
        if {"first": ev.is_first, "last": ev.is_last}.get(at, True):
            for weight in weights(ev)[:1]:
                change(weight)
        return [*found, evaluated(ev), evaluated(ev), [w.clone() for w in weights(ev)]]

    (alone,) = over_stages(1, call, layers=layers, loss_fn=loss_fn)
    for stages in (2, 3):
        results = over_stages(stages, call, layers=layers, loss_fn=loss_fn, overlap=overlap)
        for *found, own in results:
            for (loss, logits), (expected_loss, expected) in zip(found, alone, strict=False):
                assert loss == expected_loss
                assert all(map(torch.equal, logits, expected))
            assert all(torch.equal(weight, alone[3][0]) for weight in own)
    assert alone[0][0] != alone[1][0]


def test_a_partial_state_dict_reaches_the_tied_layer_of_another_stage():
    def call(ev: Evaluator) -> torch.Tensor:
        ev.module.load_state_dict({"0.weight": NEW}, strict=False)  # names no head
        evaluated(ev)
        return weights(ev)[0].clone() if weights(ev) else NEW

    assert all(
        torch.equal(w, NEW)
        for w in over_stages(3, call, layers=head_and_embedding, loss_fn=loss_fn)
    )


def test_tied_weights_that_several_stages_change_in_different_ways_are_an_error_everywhere():
    def call(ev: Evaluator) -> str:
        evaluated(ev)
        for weight in weights(ev):
            with torch.no_grad():
                weight.add_(1 + ev.stage_id)
        with pytest.raises(AgreementError) as caught:
            evaluated(ev)
        with torch.no_grad():
            for weight in weights(ev):
                weight.copy_(NEW)
        evaluated(ev)  # and the evaluator goes on
        return str(caught.value)

    expected = (
        "tied parameter (0, 'weight') was changed on stage 0 and stage 2 in different ways since "
        "the last evaluation, needed on one of them, or alike"
    )
    found = over_stages(3, call, layers=head_and_embedding, loss_fn=loss_fn)
    assert found == [expected] * 3


def test_a_change_of_weight_and_one_of_bias_on_two_stages_meet():
    def layers() -> list[Any]:
        def made() -> nn.Linear:
            torch.manual_seed(0)
            return nn.Linear(4, 4)

        return [TiedLayerSpec("w", made), nn.Tanh(), TiedLayerSpec("w", made)]

    def call(ev: Evaluator) -> dict[str, torch.Tensor]:
        data = [(torch.ones(2, 4), torch.ones(2, 4))]
        ev.evaluate(data)
        with torch.no_grad():
            for name, tensor in ev.module.named_parameters():
                if name in ("0.weight", "2.bias"):
                    tensor.fill_(0.5)
        ev.evaluate(data)
        return {name: tensor.clone() for name, tensor in ev.module.named_parameters()}

    first, last = over_stages(2, call, layers=layers)
    for part in ("weight", "bias"):
        assert torch.equal(first[f"0.{part}"], torch.full_like(first[f"0.{part}"], 0.5))
        assert torch.equal(last[f"2.{part}"], first[f"0.{part}"])


def test_a_checkpoint_has_one_value_for_tied_weights(tmp_path):
    def save(ev: Evaluator) -> None:
        if ev.is_first:
            copy_(ev.module[0].weight)
        ev.save_state_dict(tmp_path)

    def load(ev: Evaluator) -> list[torch.Tensor]:
        ev.load_state_dir(tmp_path)
        return [tensor.clone() for tensor in ev.module.state_dict().values()]

    over_stages(3, save, layers=head_and_embedding)
    (found,) = over_stages(1, load, layers=lambda: [nn.Embedding(5, 4), nn.Tanh(), Head(NEW * 0)])
    assert len(found) == 2
    assert all(torch.equal(weight, NEW) for weight in found)


class Counting(nn.Module):
    """Adds a buffer, and counts its calls in another."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.zeros(4))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += len(x)
        return x + self.offset


def counting_twice() -> list[nn.Module]:
    twice = Counting()
    return [twice, nn.Tanh(), twice]


def test_buffers_are_tied_too_but_for_what_forwards_write_to():
    def call(ev: Evaluator) -> Any:
        for ones in (1.0, 2.0):
            if ev.is_first:
                ev.module[0].offset.fill_(ones)
            data = [(torch.zeros(n, 4), torch.zeros(n, 4)) for n in (1, 3)]
            loss = ev.evaluate(data).loss
        return loss, [b.clone() for name, b in ev.module.named_buffers() if "offset" in name]

    (alone,) = over_stages(1, call, layers=counting_twice)
    for loss, offsets in over_stages(3, call, layers=counting_twice):
        assert loss == alone[0]
        assert all(torch.equal(offset, torch.full((4,), 2.0)) for offset in offsets)


def test_a_tied_weight_that_is_gone_is_named():
    def call(ev: Evaluator) -> Exception:
        if ev.is_last:
            del ev.module[0].weight
        with pytest.raises((ValueError, RemoteError)) as caught:
            evaluated(ev)
        return caught.value

    first, last = over_stages(2, call, layers=head_and_embedding, loss_fn=loss_fn)
    assert isinstance(first, RemoteError)
    assert str(last) == "tied parameter (0, 'weight') is no longer there: the layer has no 'weight'"
