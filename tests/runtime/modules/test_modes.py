"""Modules are in evaluation mode inside an evaluation, and afterwards exactly as before."""

import functools
import types
from typing import Any

import pytest
import torch
from torch import nn

from runtime.modules.found_modules import modules_in
from runtime.modules.modes import evaluating


class Adapter(nn.Module):
    """A linear layer with a low-rank addition that it merges in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.down, self.up = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(8, 2))
        self.merged = False
        self.merges: list[str] = []
        self.calls: list[bool] = []

    def train(self, mode: bool = True) -> "Adapter":
        super().train(mode)
        self.calls.append(mode)
        if mode == self.merged:
            self.weight.data += (self.up @ self.down) * (-1 if mode else 1)
            self.merged = not mode
            self.merges.append("merged") if self.merged else self.merges.pop()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.merged
        return x @ self.weight.T


class Replacing(Adapter):
    """Puts another tensor in the place of the weight, and lets go of the addition."""

    def train(self, mode: bool = True) -> "Replacing":
        nn.Module.train(self, mode)
        if not mode and not self.merged:
            self.weight = nn.Parameter(self.weight + self.up @ self.down)
            self.kept = (self.down, self.up)
            del self.down, self.up
            self.merged = True
        elif mode and self.merged:
            self.down, self.up = self.kept
            self.weight.data = self.weight.data - self.up @ self.down
            del self.kept
            self.merged = False
        return self


class Frozen(nn.Sequential):
    """Keeps its first part in evaluation mode whatever it is told."""

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self[0].eval()
        return self


def everything(module: nn.Module) -> list[Any]:
    """What can be told of a module: modes, weights by name and object, and merged adapters."""
    found: list[Any] = [(name, part.training) for name, part in module.named_modules()]
    found += [(name, id(tensor)) for name, tensor in module.state_dict(keep_vars=True).items()]
    found += [(p.merged, p.merges) for p in module.modules() if isinstance(p, Adapter)]
    return found


@pytest.mark.parametrize("kind", [Adapter, Replacing])
@pytest.mark.parametrize("nested", [False, True])
def test_an_adapter_that_merges_is_as_before_to_the_last_bit(kind, nested):
    torch.manual_seed(0)
    adapter = kind()
    model = nn.Sequential(nn.Sequential(adapter, nn.Dropout()), nn.Tanh()) if nested else adapter
    before, bits = everything(model), {n: t.clone() for n, t in model.state_dict().items()}
    for _ in range(3):
        with evaluating(model):
            assert adapter.merged
            assert not any(part.training for part in model.modules())
            merged = adapter.weight.clone()
        assert everything(model) == before
        assert all(torch.equal(tensor, bits[name]) for name, tensor in model.state_dict().items())
        assert not torch.equal(merged, adapter.weight)


def test_train_and_eval_are_called_once_each_way_where_something_is_in_training():
    adapter = Adapter()
    with evaluating(nn.Sequential(nn.Sequential(adapter))):
        assert adapter.calls == [False]
    assert adapter.calls == [False, True]


def test_what_eval_does_and_train_does_not_undo_is_undone():
    class OneWay(Adapter):
        def train(self, mode: bool = True) -> "OneWay":
            return nn.Module.train(self, mode)

        def eval(self) -> "OneWay":
            self.weight.data += self.up @ self.down
            self.merged = True
            self.merges.append("merged")
            return super().eval()

    adapter = OneWay()
    before, bits = everything(adapter), adapter.weight.clone()
    for _ in range(2):
        with evaluating(adapter):
            assert adapter.merges == ["merged"]
        assert everything(adapter) == before
        assert torch.equal(adapter.weight, bits)


def test_what_is_in_evaluation_mode_already_is_not_touched():
    adapter = Adapter()
    adapter.training = False  # but not merged: somebody has taken care of that
    model = nn.Sequential(nn.Linear(2, 2), adapter)
    with evaluating(model):
        assert not adapter.merged
    assert adapter.calls == []
    assert [part.training for part in model] == [True, False]


def test_the_mode_of_every_part_is_as_before():
    model = nn.Sequential(
        Frozen(nn.BatchNorm1d(2), nn.Dropout()), nn.Sequential(nn.Dropout(), nn.Tanh())
    )
    model.train()
    model[1][0].eval()
    before = everything(model)
    for _ in range(2):
        with evaluating(model):
            assert not any(part.training for part in model.modules())
        assert everything(model) == before
    assert not model[0][0].training


def test_what_a_forward_leaves_behind_stays():
    class Counting(Adapter):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))
            self.seen: list[int] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count += 1
            self.seen.append(len(x))
            return super().forward(x)

    layer = Counting()
    with evaluating(layer):
        layer(torch.zeros(3, 8))
    assert float(layer.count) == 1
    assert layer.seen == [3]
    assert not layer.merged


def test_an_exception_inside_leaves_everything_as_before():
    model = nn.Sequential(Adapter(), nn.Dropout())
    before, bits = everything(model), model[0].weight.clone()
    with pytest.raises(ArithmeticError), evaluating(model):
        raise ArithmeticError
    assert everything(model) == before
    assert torch.equal(model[0].weight, bits)
    assert torch.is_grad_enabled()


def test_an_exception_in_eval_leaves_everything_as_before():
    class Fails(nn.Module):
        def train(self, mode: bool = True) -> "Fails":
            super().train(mode)
            if not mode:
                raise ArithmeticError("no evaluation")
            return self

    model = nn.Sequential(Adapter(), Fails(), Adapter())
    before, bits = everything(model), model[0].weight.clone()
    with pytest.raises(ArithmeticError, match="no evaluation"), evaluating(model):
        raise AssertionError
    assert everything(model) == before
    assert torch.equal(model[0].weight, bits)


def test_modules_may_have_parts_in_common():
    shared = nn.Dropout()
    one, other = nn.Sequential(shared, Adapter()), nn.Sequential(shared)
    with evaluating(one, other, one):
        assert not any(m.training for model in (one, other) for m in model.modules())
    assert all(m.training for model in (one, other) for m in model.modules())


def test_grad_mode_autocast_and_determinism_are_as_before():
    def flags() -> list[Any]:
        return [
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.are_deterministic_algorithms_enabled(),
        ]

    model = nn.Sequential(Adapter())
    for grad in (True, False):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=torch.bfloat16):
            before = flags()
            with evaluating(model):
                assert flags() == [False, *before[1:]]
            assert flags() == before


GLOBAL = nn.Dropout()


def test_modules_are_found_wherever_a_function_keeps_them():
    class Loss:
        def __init__(self, critic: nn.Module) -> None:
            self.parts = {"critic": [critic]}

        def __call__(self, x: Any, y: Any) -> Any:
            return self.parts["critic"][0](x) - y

        def method(self, x: Any, y: Any) -> Any:
            return self(x, y)

    critic, other = nn.Sequential(nn.Dropout()), nn.Tanh()

    def closure(x: Any, y: Any, extra: nn.Module = other) -> Any:
        return critic(x) + extra(y)

    def by_name(x: Any, y: Any) -> Any:
        return [GLOBAL(value) for value in (x, y)]

    @functools.wraps(closure)
    def wrapped(*args: Any) -> Any:
        return closure(*args)

    assert modules_in(critic) == [critic]
    assert modules_in(functools.partial(torch.add, critic, alpha=other)) == [critic, other]
    assert set(modules_in(closure)) == set(modules_in(wrapped)) == {critic, other}
    assert modules_in(by_name) == [GLOBAL]
    assert modules_in(Loss(critic)) == modules_in(Loss(critic).method) == [critic]
    assert modules_in(lambda x, y: by_name(x, y), critic[0], critic) == [critic, GLOBAL]
    assert modules_in(nn.functional.mse_loss, torch.add, None, 3, [critic] * 2000) == []


class HasCritic:
    """Holds a module in its class, and another one in a slot."""

    __slots__ = ("own",)
    critic = nn.Dropout()

    def __init__(self) -> None:
        self.own = nn.Tanh()

    def __call__(self, x: Any, y: Any) -> Any:
        return self.critic(x) + self.own(y)


def test_modules_are_found_in_other_python_modules_in_classes_and_in_slots(monkeypatch):
    criteria = types.ModuleType("criteria")
    criteria.net, criteria.unused = nn.Dropout(), nn.Tanh()
    monkeypatch.setitem(globals(), "criteria", criteria)
    assert modules_in(by_attribute) == [criteria.net]
    loss = HasCritic()
    assert set(modules_in(loss)) == {HasCritic.critic, loss.own}


def by_attribute(x: Any, y: Any) -> Any:
    return criteria.net(x) - y  # noqa: F821 - the test puts it there
