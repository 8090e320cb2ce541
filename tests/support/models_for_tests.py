"""Small models and data for tests of the runtime, and what one process makes of them."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from runtime import Evaluator
from runtime.data.items import ItemReader, Reading
from runtime.data.micro_batches import Prefetcher
from runtime.data.route import Route
from runtime.data.stream import Stream, window_of
from runtime.testing import InMemoryTransport, run_threads

Data = list[tuple[torch.Tensor, torch.Tensor]]


def mlp(layers: int = 6, seed: int = 0) -> list[nn.Module]:
    """Linear layers with activations between, one in place and one that returns its input."""
    torch.manual_seed(seed)
    kinds: list[Callable[[], nn.Module]] = [
        lambda: nn.Linear(6, 6),
        nn.Tanh,
        lambda: nn.Linear(6, 6),
        nn.Identity,
        lambda: nn.ReLU(inplace=True),
    ]
    return [nn.Linear(4, 6), *(kinds[n % len(kinds)]() for n in range(layers - 1))]


def batches(sizes: Sequence[int], seed: int = 1) -> Data:
    """Micro-batches of the given sizes."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, 4, generator=generator), torch.randn(n, 6, generator=generator))
        for n in sizes
    ]


def one_process(layers: list[nn.Module], data: Data) -> tuple[list[torch.Tensor], list[float]]:
    """Logits and losses of the unsplit model, one micro-batch after the other."""
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        logits = [model(inputs.clone()) for inputs, _ in data]
    losses = [float(nn.functional.mse_loss(y, t)) for y, (_, t) in zip(logits, data, strict=True)]
    return logits, losses


class Unwatched:
    """Nobody asks what a stage is at."""

    def phase(self, at: str, *, waits_for: str = "", patient: bool = False) -> None:
        pass


def stream_of(data: Data, end: InMemoryTransport) -> Stream:
    """A stage's stream of micro-batches that all stages have fetched before."""
    last = end.rank == end.ranks - 1
    reading = Reading(inputs=end.rank == 0, labels=last, fingerprints=False)
    reader = ItemReader(reading, end.device, f"stage {end.rank}")
    prefetcher = Prefetcher(data, reader, most=len(data), around=nullcontext)
    prefetcher.fetch()
    window = window_of(prefetcher, 0, len(data))
    reads = end.rank == 0 or last
    route = Route.of(range(end.ranks), end.rank)
    return Stream(route, window, len(data), prefetcher if reads else None, Unwatched())


def over_stages(
    stages: int,
    call: Callable[[Evaluator], Any],
    /,
    *,
    layers: Callable[[], list[Any]] = mlp,
    replicas: int = 1,
    network: dict[str, Any] | None = None,
    **options: Any,
) -> list[Any]:
    """What `call(evaluator)` returns on every rank, over the in-memory transport.

    With several replicas, it is `call(evaluator, replica)`.
    """
    options = {"loss_fn": nn.functional.mse_loss, "partition": "uniform"} | options

    # Not in the threads: they share one generator.
    built = [layers() for _ in range(stages * replicas)]

    def stage(end: InMemoryTransport) -> Any:
        evaluator = Evaluator(built[end.global_rank], transport=end, **options)
        return call(evaluator) if replicas == 1 else call(evaluator, end.replica)

    return run_threads(stages, stage, replicas=replicas, timeout=30, **(network or {}))
