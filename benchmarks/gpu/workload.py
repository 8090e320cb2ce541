"""Layers that are tortured, data, and what one process makes of both."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.machine import Machine
from runtime import EvalResult

Pair = tuple[torch.Tensor, torch.Tensor]
WIDTH = 512


class Tortured(nn.Module):
    """A layer before which the device is busy, and free memory full of NaN."""

    def __init__(self, layer: nn.Module, machine: Machine, seconds: float) -> None:
        """Keep the device busy for `seconds` at each second forward."""
        super().__init__()
        self.layer = layer
        self._machine, self._seconds, self._forwards = machine, seconds, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the layer returns."""
        self._forwards += 1
        if self._forwards % 2:
            self._machine.busy(self._seconds)
        self._machine.poison(x.nbytes)
        y = self.layer(x)
        self._machine.poison(y.nbytes)
        assert isinstance(y, torch.Tensor)
        return y


def layers(count: int, width: int = WIDTH, seed: int = 0) -> list[nn.Module]:
    """The same weights in every process."""
    torch.manual_seed(seed)
    return [nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(count)]


def tortured(of: Sequence[nn.Module], machine: Machine, seconds: float = 1e-3) -> list[nn.Module]:
    """The layers, each tortured."""
    return [Tortured(layer, machine, seconds * (1 + n % 3)) for n, layer in enumerate(of)]


def data(micro_batches: int, rows: int = 8, width: int = WIDTH) -> list[Pair]:
    """Inputs and labels, the same in every process."""
    generator = torch.Generator().manual_seed(1)
    shape = (rows, width)
    drawn: Iterator[torch.Tensor] = (
        torch.randn(shape, generator=generator) for _ in range(2 * micro_batches)
    )
    return list(zip(drawn, drawn, strict=True))


def one_process(
    of: Sequence[nn.Module], pairs: Sequence[Pair], device: torch.device
) -> list[torch.Tensor]:
    """Logits of the unsplit model on `device`, one micro-batch after the other, on the CPU."""
    model = copy.deepcopy(nn.Sequential(*of)).to(device).eval()
    with torch.no_grad():
        return [model(inputs.to(device)).cpu() for inputs, _ in pairs]


def differing(found: EvalResult | Any, expected: Sequence[torch.Tensor]) -> list[int]:
    """The micro-batches whose logits are not, bit for bit, those of one process."""
    logits = found.logits or ()
    if len(logits) != len(expected):
        return list(range(len(expected)))
    pairs = zip(logits, expected, strict=True)
    return [m for m, (ours, its) in enumerate(pairs) if not torch.equal(ours.cpu(), its)]
