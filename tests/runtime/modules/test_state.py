"""An evaluation leaves everything as it was: weights, gradients, modes, random numbers, data."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from runtime import Evaluator
from tests.support.models_for_tests import batches, mlp, one_process, over_stages

DATA = batches([2, 3, 2])


def trained(evaluate: bool, *, first: bool = False) -> list[torch.Tensor]:
    """Weights, gradients and random state after training, with evaluations between or without."""
    torch.manual_seed(1)
    model = nn.Sequential(*mlp(3), nn.Dropout(0.5), nn.BatchNorm1d(6))
    model[1].eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    evaluator = Evaluator(model, loss_fn=nn.functional.mse_loss)
    losses = []
    if evaluate and first:
        losses.append(evaluator.evaluate(DATA).loss)
    for x, y in batches([4, 4, 4], seed=9):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        if evaluate:  # between the gradients and the step
            losses.append(evaluator.eval_batch(iter(DATA), num_micro_batches=3).loss)
            losses.append(evaluator.evaluate(DATA, return_logits=True).loss)
            assert losses[-1] == losses[-2]
        optimizer.step()
    assert not evaluate or len(set(losses)) > 2
    assert [part.training for part in model] == [True, False, True, True, True]
    gradients = [parameter.grad for parameter in model.parameters()]
    return [*model.state_dict().values(), *gradients, torch.get_rng_state()]


@pytest.mark.parametrize("first", [False, True])
def test_training_goes_on_as_if_nothing_had_been_evaluated(first):
    undisturbed = trained(evaluate=False)
    disturbed = trained(evaluate=True, first=first)
    assert all(map(torch.equal, undisturbed, disturbed))


def test_a_loader_that_shuffles_leaves_the_random_numbers_as_they_were():
    loader = DataLoader(
        TensorDataset(torch.randn(8, 4), torch.randn(8, 6)), batch_size=3, shuffle=True
    )
    evaluator = Evaluator(mlp(), loss_fn=nn.functional.mse_loss)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = evaluator.evaluate(loader)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.micro_batches == 3
    assert sum(first.weights) == 8
    assert evaluator.evaluate(loader) == first


class MonteCarlo(nn.Module):
    """A layer that draws in evaluation, on purpose."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.5, training=True)


@pytest.mark.parametrize("whole", [False, True])
def test_a_layer_that_draws_in_evaluation_draws_what_it_would_draw_in_one_process(whole):
    layers = [*mlp(2), MonteCarlo()]
    loader = DataLoader(
        TensorDataset(torch.randn(8, 4), torch.randn(8, 6)), batch_size=3, shuffle=True
    )
    torch.manual_seed(3)
    order = list(loader)

    def passes(evaluate: Any) -> list[Any]:
        torch.manual_seed(5)
        found = [evaluate() for _ in range(3)]
        return [*found, torch.get_rng_state()]

    def one() -> tuple[float, ...]:
        return tuple(one_process(layers, order)[1])

    evaluator = Evaluator(layers, loss_fn=nn.functional.mse_loss)

    def over_stages() -> Any:
        if not whole:
            return evaluator.eval_batch(iter(order), num_micro_batches=3).losses
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            first_draw = torch.get_rng_state()
        return evaluator.evaluate(Shuffled(loader, first_draw)).losses

    expected, found = passes(one), passes(over_stages)
    assert found[:3] == expected[:3]
    assert len(set(found[:3])) == 3, "each pass has masks of its own"
    assert torch.equal(found[3], expected[3])


class Shuffled:
    """A loader that shuffles by a given state of torch's generator, while it is iterated."""

    def __init__(self, loader: Any, state: torch.Tensor) -> None:
        self.loader, self.state = loader, state

    def __iter__(self) -> Iterator[Any]:
        torch.set_rng_state(self.state)
        for pair in self.loader:
            torch.rand(7)  # an augmentation
            yield pair


def test_an_iterator_is_advanced_by_exactly_the_micro_batches_evaluated():
    def call(ev: Evaluator) -> tuple[int, list[float | None]]:
        drawn = 0

        def counted() -> Iterator[Any]:
            nonlocal drawn
            for pair in batches([1, 2, 3, 4, 5]):
                drawn += 1
                yield pair

        data = counted()
        losses = [ev.eval_batch(data, num_micro_batches=m).loss for m in (1, 3)]
        return drawn, losses

    first, middle, last = over_stages(3, call)
    assert first[0] == last[0] == 4
    assert middle[0] == 0
    assert first[1] == last[1]


def test_gradients_may_be_off_or_on_around_an_evaluation():
    evaluator = Evaluator(mlp(), loss_fn=nn.functional.mse_loss)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            result = evaluator.eval_batch(iter(DATA), return_logits=True, num_micro_batches=3)
            assert torch.is_grad_enabled() == enabled
        assert not any(y.requires_grad for y in result.logits)


class Critic(nn.Module):
    """A loss with statistics and dropout, in training mode as every new module is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.features = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))

    def forward(self, output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(self.features(output), self.features(label))


def critics() -> dict[str, tuple[Any, nn.Module]]:
    """Losses that are, or hold, a critic; and the critic."""
    one, two, three = Critic(), Critic(), Critic()

    def scaled(scale: float, output: Any, label: Any) -> Any:
        return scale * two(output, label)

    return {
        "module": (one, one),
        "partial and closure": (partial(scaled, 1.0), two),
        "method": (three.forward, three),
    }


@pytest.mark.parametrize("kind", list(critics()))
@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("name", ["loss_fn", "metric"])
def test_a_loss_in_training_mode_is_evaluated_in_evaluation_mode(kind, stages, name):
    whole = nn.Sequential(*mlp()).eval()
    with torch.no_grad():
        expected = [float(Critic().eval()(whole(x), y)) for x, y in DATA]
    average = sum(loss * len(x) for loss, (x, _) in zip(expected, DATA, strict=True)) / 7

    def call(ev: Evaluator) -> list[Any]:
        results = [ev.evaluate(DATA) for _ in range(2)]
        return [r.loss if name == "loss_fn" else r.metrics["critic"] for r in results]

    function, critic = critics()[kind]
    before = {name: tensor.clone() for name, tensor in critic.state_dict().items()}
    options = {"loss_fn": function if name == "loss_fn" else None}
    if name == "metric":
        options["metrics"] = {"critic": function}
    found = over_stages(stages, call, **options)
    assert found == [[pytest.approx(average, rel=1e-12)] * 2] * stages
    assert all(part.training for part in critic.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in critic.state_dict().items())


class Merging(nn.Module):
    """Adds what it has learnt to its weight when it is to be evaluated, as adapters do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.learnt = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4))
        self.merged = False

    def train(self, mode: bool = True) -> "Merging":
        super().train(mode)
        if mode == self.merged:
            self.weight.data += -self.learnt if mode else self.learnt
            self.merged = not mode
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.weight if self.merged else self.weight + self.learnt)


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("overlap", [False, True])
def test_an_adapter_is_merged_in_an_evaluation_and_as_before_afterwards(stages, overlap):
    def layers() -> list[nn.Module]:
        torch.manual_seed(3)
        return [Merging(), nn.Dropout(), *mlp(3)]

    whole = nn.Sequential(*layers()).eval()
    with torch.no_grad():
        expected = [float(nn.functional.mse_loss(whole(x), y)) for x, y in DATA]

    def call(ev: Evaluator) -> list[list[float]]:
        parts = list(ev.module)
        before = [tensor.clone() for tensor in ev.module.state_dict().values()]
        found = [list(ev.evaluate(DATA).losses or ()) for _ in range(3)]
        assert all(map(torch.equal, ev.module.state_dict().values(), before))
        assert all(part.training for part in parts)
        assert not any(part.merged for part in parts if isinstance(part, Merging))
        return found

    assert over_stages(stages, call, layers=layers, overlap=overlap) == [[expected] * 3] * stages


def test_an_evaluation_that_fails_leaves_modules_as_before():
    class Fails(nn.Module):
        def forward(self, _: torch.Tensor) -> torch.Tensor:
            raise ArithmeticError("no forward today")

    merging, critic = Merging(), Critic()
    weight = merging.weight.clone()
    evaluator = Evaluator([merging, nn.Dropout(), Fails()], loss_fn=critic)
    with pytest.raises(ArithmeticError):
        evaluator.evaluate(DATA)
    assert torch.equal(merging.weight, weight)
    assert not merging.merged
    assert all(part.training for part in (*evaluator.module.modules(), *critic.modules()))
    assert torch.is_grad_enabled()
