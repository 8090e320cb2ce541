"""Processes that have different weights where they are to have the same are told."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from runtime import Evaluator
from runtime.modules.weights.agreement import DifferentWeightsError
from runtime.modules.weights.digests import complete
from runtime.testing import run_threads
from tests.support.models_for_tests import batches, mlp, over_stages

DATA = batches([2, 3])


def over_ranks(
    stages: int, call: Callable[..., Any], seeds: list[int], **options: Any
) -> list[Any]:
    """What `call(evaluator)` returns on every rank, each with layers from a seed of its own."""
    built = [mlp(seed=seed) for seed in seeds]
    replicas = len(seeds) // stages
    options = {"loss_fn": nn.functional.mse_loss, "partition": "uniform"} | options

    def stage(end: Any) -> Any:
        return call(Evaluator(built[end.global_rank], transport=end, **options))

    return run_threads(stages, stage, replicas=replicas, timeout=30)


def refusal(ev: Evaluator) -> str:
    with pytest.raises(DifferentWeightsError) as caught:
        ev.evaluate(DATA)
    return str(caught.value)


def loss(ev: Evaluator) -> float | None:
    return ev.evaluate(DATA).loss


def test_layers_that_processes_made_from_unequal_seeds_are_an_error_on_all_stages():
    expected = (
        "layer 0 runs on stage 0, and stage 2 has built it with other weights: needed the same "
        "layers on every process, so the same seed, or weights that are loaded "
        "(check_weights=False leaves this comparison out)"
    )
    assert over_ranks(3, refusal, [0, 0, 1]) == [expected] * 3


class Features(nn.Module):
    """Random features, in a buffer."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("directions", torch.randn(4, 6, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.directions


@pytest.mark.parametrize("alike", [True, False])
def test_buffers_that_processes_drew_from_unequal_seeds_are_an_error_too(alike):
    built = [[Features(0 if alike else rank), nn.Identity()] for rank in range(2)]

    def stage(end: Any) -> str | None:
        options = {"loss_fn": nn.functional.mse_loss, "partition": "uniform"}
        ev = Evaluator(built[end.global_rank], transport=end, **options)
        return str(loss(ev)) if alike else refusal(ev)

    for said in run_threads(2, stage, timeout=30):
        assert ("layer 0 runs on stage 0" in said) is not alike


def test_the_first_layer_that_differs_is_named():
    built = [mlp() for _ in range(2)]
    with torch.no_grad():
        built[0][3].bias[2] += 1  # stage 1's, as stage 0 has it
    options = {"loss_fn": nn.functional.mse_loss, "partition": "uniform"}
    found = run_threads(
        2, lambda end: refusal(Evaluator(built[end.global_rank], transport=end, **options))
    )
    assert [message.partition(":")[0] for message in found] == [
        "layer 3 runs on stage 1, and stage 0 has built it with other weights"
    ] * 2


def test_weights_that_are_loaded_later_are_no_reason_for_an_error():
    state = nn.Sequential(*mlp(seed=9)).state_dict()

    def call(ev: Evaluator) -> float | None:
        own = ev.module.state_dict().keys()
        ev.module.load_state_dict({name: state[name] for name in own})
        return loss(ev)

    expected = over_stages(1, loss, layers=lambda: mlp(seed=9))
    assert over_ranks(3, call, [0, 1, 2]) == expected * 3


def test_the_comparison_can_be_left_out():
    assert len(set(over_ranks(3, loss, [0, 1, 2], check_weights=False))) == 1
    assert len(set(over_ranks(1, loss, [0, 1], check_weights=False))) == 1


def test_layers_without_memory_and_specifications_say_nothing():
    def layers(rank: int) -> list[nn.Module]:
        whole = mlp()
        return [
            layer if index // 3 == rank else layer.to("meta") for index, layer in enumerate(whole)
        ]

    built = [layers(0), layers(1)]
    options = {"loss_fn": nn.functional.mse_loss, "partition": "uniform"}
    found = run_threads(
        2, lambda end: loss(Evaluator(built[end.global_rank], transport=end, **options))
    )
    assert found == over_stages(1, loss) * 2


@pytest.mark.parametrize("stages", [1, 2])
def test_replicas_with_other_weights_are_an_error_on_all_ranks(stages):
    found = over_ranks(stages, refusal, [0] * stages + [1] * stages)
    expected = (
        "layer 0 has other weights on stage 0 of replica 1 than on stage 0 of replica 0, needed "
        "the same in all replicas (check_weights=False leaves this comparison out)"
    )
    assert found == [expected] * len(found)


def test_replicas_whose_weights_become_different_are_an_error_and_may_be_mended():
    def call(ev: Evaluator, replica: int) -> list[float | None]:
        def change() -> None:
            if ev.is_last:
                ev.module[0].bias.data += 1

        found = [loss(ev)]
        if replica == 1:
            change()
        message = refusal(ev)
        assert message.startswith("layer 3 has other weights on stage 1 of replica 1 than")
        if replica == 0:
            change()
        return [*found, loss(ev)]

    results = over_stages(2, call, replicas=2)
    assert len({tuple(found) for found in results}) == 1
    assert results[0][0] != results[0][1]


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("offset", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x + self.offset


def test_a_replica_without_data_does_not_count_and_yet_may_go_on():
    def call(ev: Evaluator, replica: int) -> list[float | None]:
        return [ev.evaluate(DATA if replica == 0 else []).loss for _ in range(2)]

    results = over_stages(2, call, replicas=2, layers=lambda: [Counting(), *mlp()])
    assert len({loss for found in results for loss in found}) == 1


def test_what_forwards_count_may_differ_between_replicas_and_what_they_only_read_may_not():
    def call(ev: Evaluator, replica: int) -> None:
        for _ in range(3):
            ev.evaluate(DATA[: 1 + replica])
        if ev.is_first and replica == 1:
            ev.module[0].offset += 1
        refusal(ev)

    over_stages(2, call, replicas=2, layers=lambda: [Counting(), *mlp()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.bool])
@pytest.mark.parametrize("shape", [(), (3,), (5, 7), (1024, 33)])
def test_a_complete_digest_sees_every_element_and_its_place(dtype, shape):
    torch.manual_seed(0)
    tensor = (torch.rand(shape) > 0.5) if dtype is torch.bool else torch.randn(shape).to(dtype)
    assert complete(tensor) == complete(tensor.clone())
    for place in {0, tensor.numel() // 2, tensor.numel() - 1}:
        other = tensor.clone()
        flat = other.view(-1)
        flat[place] = ~flat[place] if dtype is torch.bool else flat[place] + 1
        assert complete(other) != complete(tensor)
    if tensor.dim() == 2 and dtype is not torch.bool:
        for axis in (0, 1):
            assert complete(tensor.roll(1, axis)) != complete(tensor)
    assert complete(tensor.to("meta")) is None


def test_a_complete_digest_does_not_depend_on_where_and_how_a_tensor_lies():
    tensor = torch.randn(40, 50)
    expected = complete(tensor)
    assert complete(tensor.t().contiguous().t()) == expected
    room = torch.zeros(2001)
    room[1:] = tensor.flatten()
    assert complete(room[1:].view(40, 50)) == expected
