"""A model with all kinds of layers, and grids of evaluators in memory that save and load it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from runtime import Evaluator
from runtime.testing import InMemoryTransport, run_threads
from schemas import CheckpointManifest

Result = TypeVar("Result")
LAYERS = 7


class Counted(nn.Module):
    """A norm in another precision, a counter, a scalar, and a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6, dtype=torch.bfloat16)
        self.steps = nn.Buffer(torch.tensor(7))
        self.flags = nn.Buffer(torch.tensor([True, False]))
        self.cache = nn.Buffer(torch.zeros(3), persistent=False)


def model(seed: int = 0) -> list[nn.Module]:
    """Seven layers; the matrix of the first is tied to that of the last."""
    torch.manual_seed(seed)
    layers = [
        nn.Embedding(10, 6),
        nn.Linear(6, 6),
        nn.Tanh(),
        Counted(),
        nn.Linear(6, 6).to(torch.float16),
        nn.Identity(),
        nn.Linear(6, 10),
    ]
    with torch.no_grad():
        layers[3].norm.bias.normal_()
    layers[6].weight = layers[0].weight
    return layers


def on_grid(
    layers: Callable[[], list[nn.Module]],
    call: Callable[[Evaluator], Result],
    *,
    stages: int = 1,
    replicas: int = 1,
) -> list[Result]:
    """What `call(evaluator)` returns on every rank, each having made its layers itself."""
    built = [layers() for _ in range(stages * replicas)]  # not in the threads: one generator

    def body(end: InMemoryTransport) -> Result:
        mse = nn.functional.mse_loss
        return call(
            Evaluator(built[end.global_rank], loss_fn=mse, partition="uniform", transport=end)
        )

    return run_threads(stages, body, replicas=replicas, timeout=60)


def save(
    directory: Path, layers: Callable[[], list[nn.Module]] = model, **grid: Any
) -> CheckpointManifest:
    parallel = grid.pop("parallel_write", True)

    def call(evaluator: Evaluator) -> CheckpointManifest:
        return evaluator.save_state_dict(directory, parallel_write=parallel)

    first, *others = on_grid(layers, call, **grid)
    assert all(other == first for other in others)
    return first


def state_of(layers: list[nn.Module], first: int = 0) -> dict[str, torch.Tensor]:
    return {
        f"{index}.{name}": value.detach().clone()
        for index, layer in enumerate(layers, start=first)
        for name, value in layer.state_dict().items()
    }


def load(
    directory: Path,
    layers: Callable[[], list[nn.Module]] = lambda: model(seed=1),
    *,
    strict: bool = True,
    **grid: Any,
) -> dict[str, torch.Tensor]:
    """The state of the whole model after loading; all replicas have the same."""

    def call(evaluator: Evaluator) -> tuple[int, dict[str, torch.Tensor]]:
        evaluator.load_state_dir(directory, strict=strict)
        first = evaluator.boundaries[evaluator.stage_id]
        return evaluator.stage_id, state_of(list(evaluator.module), first)

    state: dict[str, torch.Tensor] = {}
    for _, part in on_grid(layers, call, **grid):
        for name, value in part.items():
            assert name not in state or torch.equal(state[name], value)
        state |= part
    return state


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name
