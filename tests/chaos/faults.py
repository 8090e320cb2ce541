"""Faults: what goes wrong, where, and how it is made to happen inside a stage."""

import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from typing import Any, Literal, get_args

import torch
from torch import nn

from schemas import ForwardPass, Placed
from tests.support.models_for_tests import Data, batches

MICRO_BATCHES = 5
HIDDEN = 6

Recoverable = Literal[
    "slow layer",
    "layer raises",
    "new shape raises",
    "loss raises",
    "iterator raises",
    "listener raises",
    "short iterator",
    "shuffled loader",
    "nan",
]
Lost = Literal["killed", "exits"]
Stalled = Literal["stopped", "hangs"]
Kind = Literal["none"] | Recoverable | Lost | Stalled

RECOVERABLE: tuple[Recoverable, ...] = get_args(Recoverable)
LOST: tuple[Lost, ...] = get_args(Lost)
STALLED: tuple[Stalled, ...] = get_args(Stalled)
AGREED: tuple[Kind, ...] = ("short iterator", "shuffled loader", "nan")


class ChaosError(Exception):
    """What the faults that raise do raise."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong."""

    kind: Kind
    stage: int
    """The rank, where there are replicas."""
    micro_batch: int = 0

    @classmethod
    def draw(cls, chance: random.Random, stages: int, kinds: tuple[Kind, ...]) -> "Fault":
        """A fault of one of the kinds, where it can happen in a pipeline of `stages`."""
        kind = chance.choice(kinds)
        readers = {"iterator raises", "short iterator"}
        stage = chance.randrange(stages)
        if kind in ("loss raises", "shuffled loader"):
            stage = stages - 1
        if kind in readers:
            stage = chance.choice([0, stages - 1])
        if kind == "new shape raises":
            stage = chance.randrange(stages - 1)
        return cls(kind, stage, chance.randrange(MICRO_BATCHES))


class Trap:
    """Makes a fault happen on its stage; a listener, to know the micro-batch of a forward."""

    def __init__(self, stage: int, struck: "Synchronized[float]") -> None:
        """Note in `struck` when it happens (seconds, on the clock that all processes share)."""
        self._stage, self._struck = stage, struck
        self.fault = Fault("none", 0)
        self._forwarding: int | None = None

    def started(self, placed: Placed) -> None:
        forward = isinstance(placed.instruction, ForwardPass)
        self._forwarding = placed.instruction.micro_batch if forward else None

    def finished(self, placed: Placed) -> None:
        self._forwarding = None
        if getattr(placed.instruction, "micro_batch", None) == self.fault.micro_batch:
            self._raise("listener raises")

    def here(self, kind: Kind) -> bool:
        """Whether this stage is to suffer a fault of that kind."""
        if (self.fault.kind, self.fault.stage) != (kind, self._stage):
            return False
        self._struck.value = time.monotonic()
        return True

    def _raise(self, kind: Kind) -> None:
        if self.here(kind):
            raise ChaosError(f"{kind} on stage {self._stage}")

    def in_layer(self, x: torch.Tensor) -> torch.Tensor:
        """What the stage's saboteur makes of its input."""
        if self._forwarding == 0:
            self._raise("new shape raises")
        if self._forwarding != self.fault.micro_batch:
            return x
        self._raise("layer raises")
        if self.here("slow layer"):
            time.sleep(0.3)
        if self.here("nan"):
            return x * float("nan")
        if self.here("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.here("exits"):
            os._exit(3)
        if self.here("stopped"):
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.here("hangs"):
            time.sleep(3600)
        return x

    def in_loss(self, output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Mean squared error."""
        if self._forwarding == self.fault.micro_batch:
            self._raise("loss raises")
        return nn.functional.mse_loss(output, label)

    def data(self) -> Iterator[Any]:
        """The micro-batches, as this stage's loader gives them."""
        data = NEW_SHAPE if self.fault.kind == "new shape raises" else DATA
        if self.here("short iterator"):
            data = data[: self.fault.micro_batch]
        if self.here("shuffled loader"):
            data = data[1:] + data[:1]
        for number, pair in enumerate(data):
            if number == self.fault.micro_batch:
                self._raise("iterator raises")
            yield pair


class Saboteur(nn.Module):
    """A layer that does nothing to its input, unless its stage's trap says so."""

    trap: Trap | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.trap is None else self.trap.in_layer(x)


DATA: Data = batches([2, 3, 2, 1, 2])
NEW_SHAPE: Data = batches([4] * MICRO_BATCHES)
"""Of a shape that no evaluation has had before."""


def layers(stages: int) -> list[nn.Module]:
    """Two layers for each stage."""
    torch.manual_seed(7)
    model: list[nn.Module] = []
    for stage in range(stages):
        model += [nn.Linear(HIDDEN if stage else 4, HIDDEN), Saboteur()]
    return model
