"""The work of a setting: layers that compute or sleep, data, and what one process makes of them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from benchmarks.settings import Setting

Pair = tuple[torch.Tensor, torch.Tensor]


class EmulatedDevice(nn.Module):
    """A stage on a device of its own: its forward takes a fixed time and leaves the processor free.

    What little it computes, so that results depend on all of its input, is a part of that time.
    """

    def __init__(self, seconds: float) -> None:
        """Take `seconds` for a forward."""
        super().__init__()
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x + 1`, after the time has passed."""
        end = time.perf_counter() + self.seconds
        y = x + 1.0
        time.sleep(max(0.0, end - time.perf_counter()))
        return y


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation gives on the last stage."""

    losses: list[float]
    logits: list[torch.Tensor] | None = None


@dataclass(frozen=True)
class Workload:
    """A setting's layers, equally many on each stage, and its data."""

    setting: Setting
    layers: list[nn.Module]
    data: list[Pair]

    @classmethod
    def of(cls, setting: Setting, layers_per_stage: int) -> "Workload":
        """The same layers and data in every process."""
        generator = torch.Generator().manual_seed(1)
        torch.manual_seed(0)
        shape = (setting.rows, setting.width)
        inputs = [torch.randn(shape, generator=generator) for _ in range(4)]
        labels = [torch.randn(setting.width, generator=generator) for _ in range(4)]
        return cls(
            setting,
            [_layer(setting) for _ in range(layers_per_stage * setting.stages)],
            [(inputs[m % 4], labels[m % 4]) for m in range(setting.micro_batches)],
        )

    @property
    def boundaries(self) -> list[int]:
        """The first layer of each stage, and the number of layers."""
        return list(range(0, len(self.layers) + 1, len(self.layers) // self.setting.stages))

    def stage(self, stage_id: int) -> nn.Module:
        """The layers of one stage."""
        return nn.Sequential(
            *self.layers[self.boundaries[stage_id] : self.boundaries[stage_id + 1]]
        )

    def examples(self, stage_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What goes into a stage, and what comes out of it."""
        inputs = self.data[0][0]
        activation = torch.empty(self.setting.rows, self.setting.width)
        return (inputs if stage_id == 0 else activation), activation

    def one_process(self, *, keep_logits: bool) -> Evaluated:
        """All micro-batches through all layers, one after the other."""
        model = nn.Sequential(*self.layers)
        losses, logits = [], []
        for inputs, label in self.data:
            output = model(inputs)
            losses.append(loss_fn(output, label))
            if keep_logits:
                logits.append(output)
        return Evaluated([float(loss) for loss in losses], logits if keep_logits else None)


def loss_fn(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the first row, cheap beside a stage: a scalar.

    Args:
        output: `[rows, width]`.
        label: `[width]`.
    """
    return nn.functional.mse_loss(output[0], label)


def layers_per_stage(setting: Setting) -> int:
    """How many layers make a stage take the time of the setting on this machine, at least one."""
    if setting.kind != "compute":
        return 1
    layer, x = _layer(setting), torch.randn(setting.rows, setting.width)
    with torch.no_grad():
        timed(lambda: layer(x), 20)
        seconds = timed(lambda: layer(x), 50)
    return max(1, round(setting.stage_seconds / seconds))


def timed(call: Callable[[], object], times: int) -> float:
    """Median seconds of a call."""
    seconds: Sequence[float] = [seconds_of(call) for _ in range(times)]
    return median(seconds)


def seconds_of(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _layer(setting: Setting) -> nn.Module:
    if setting.kind == "compute":
        return nn.Linear(setting.width, setting.width)
    return EmulatedDevice(setting.stage_seconds)
