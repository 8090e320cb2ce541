"""Losses of single tokens, and what follows from them: exact sums, standard error, progress."""

import math
from collections.abc import Callable
from itertools import chain

import torch

from runtime.device import Clock, Mark
from runtime.language.models import PendingLogits, Targets, target_losses
from runtime.language.text import Windows

CHUNK = 1 << 20
"""Tokens that are added up at once."""


def mean_target_loss(output: PendingLogits | torch.Tensor, targets: Targets) -> torch.Tensor:
    """The mean of `target_losses`, float64."""
    return target_losses(output, targets).mean(dtype=torch.float64)


def exact_loss(losses: torch.Tensor) -> float:
    """The sum of the losses that are there (not NaN), rounded once; float32 `[tokens]`."""
    parts = (losses[first : first + CHUNK] for first in range(0, len(losses), CHUNK))
    return math.fsum(chain.from_iterable(part[~part.isnan()].tolist() for part in parts))


def standard_error(sums: torch.Tensor, targets: torch.Tensor) -> float | None:
    """The standard error of `sums.sum() / targets.sum()`, windows being drawn independently.

    Tokens of one window depend on each other, so windows are the units: a ratio of two means of
    windows. Source: W. Cochran (1977), Sampling Techniques, 3rd edition, equation 2.47, without
    the correction for a finite population.

    Args:
        sums: Loss of each window in nats, float64 `[windows]`.
        targets: Targets of each, `[windows]`.

    Returns:
        `None` of fewer than two windows.
    """
    windows, total = len(sums), float(targets.sum())
    if windows < 2:
        return None
    residuals = sums - float(sums.sum()) / total * targets
    return math.sqrt(windows / (windows - 1) * float(residuals.square().sum())) / total


class TokenScores:
    """The loss of every target, as micro-batches come."""

    def __init__(self, windows: Windows) -> None:
        """Expect the micro-batches of `windows`, in order."""
        self._windows = windows
        self.losses = torch.full((len(windows.documents.tokens),), math.nan)
        """Nats, float32 `[tokens]`; NaN where a token is no target, or not yet."""
        self._sums = torch.zeros(windows.windows, dtype=torch.float64)
        self._targets = torch.zeros(windows.windows, dtype=torch.float64)
        self.micro_batches = 0
        self.tokens = 0

    def add(self, losses: torch.Tensor) -> None:
        """Take the losses of the next micro-batch's targets, float32 `[targets]`."""
        number = self.micro_batches
        self.losses[self._windows.targets(number)] = losses
        rows = self._windows.window_of_targets(number)
        self._sums.index_add_(0, rows, losses.double())
        self._targets.index_add_(0, rows, torch.ones(len(rows), dtype=torch.float64))
        self.micro_batches += 1
        self.tokens += len(losses)

    def running(self) -> tuple[float, float | None]:
        """The loss so far, and its standard error."""
        done = self._targets > 0
        sums, targets = self._sums[done], self._targets[done]
        return float(sums.sum() / targets.sum()), standard_error(sums, targets)


class LossCollector:
    """A loss function that hands the losses of every token to the host, without waiting for it."""

    def __init__(self, device: torch.device, take: Callable[[torch.Tensor], None]) -> None:
        """Give `take` the losses of each micro-batch's targets, in order, float32 `[targets]`."""
        self._clock, self._take = Clock(device), take
        self._open: list[tuple[torch.Tensor, Mark]] = []

    def __call__(self, output: PendingLogits | torch.Tensor, targets: Targets) -> torch.Tensor:
        """The mean loss of a micro-batch, float64; see `target_losses` for the arguments."""
        losses = target_losses(output, targets)
        self._open.append((losses.to("cpu", non_blocking=True), self._clock.mark()))
        while self._open and self._clock.reached(self._open[0][1]):
            self._take(self._open.pop(0)[0])
        return losses.mean(dtype=torch.float64)

    def finish(self) -> None:
        """Wait for what is still on the device."""
        self._clock.synchronize()
        while self._open:
            self._take(self._open.pop(0)[0])
