"""Faults: what goes wrong, where, and how it is made to happen inside a stage."""

import ctypes
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.sharedctypes import SynchronizedArray
from typing import Any, Literal, get_args

import torch
from torch import nn

from schemas import ForwardPass, Placed
from tests.chaos.network import BREAK, NetworkFault
from tests.chaos.odd_errors import ODD_ERRORS, OddError
from tests.support.models_for_tests import Data, batches

MICRO_BATCHES = 5
BROKEN_SECONDS = 30.0
"""How long a rank waits for a fault of the network."""

HIDDEN = 6

Recoverable = Literal[
    "slow layer",
    "holds the interpreter",
    "no descriptors",
    "layer raises",
    "new shape raises",
    "loss raises",
    "iterator raises",
    "listener raises",
    "short iterator",
    "shuffled loader",
    "nan",
]
Lost = Literal["killed", "exits", "crashes"]
Stalled = Literal["stopped", "hangs"]
Interrupting = Literal["raises", "interrupted"]
"""What can happen in any phase, and be recovered from."""
Kind = Literal["none"] | Recoverable | OddError | Lost | Stalled | Interrupting | NetworkFault

Phase = Literal["running", "opening", "saving", "loading", "telling"]
"""Telling: of a failure that another fault has made."""

RECOVERABLE: tuple[Recoverable, ...] = get_args(Recoverable)
LOST: tuple[Lost, ...] = get_args(Lost)
STALLED: tuple[Stalled, ...] = get_args(Stalled)
INTERRUPTING: tuple[Interrupting, ...] = get_args(Interrupting)
AGREED: tuple[Kind, ...] = ("short iterator", "shuffled loader", "nan")
NO_FAULT: tuple[Kind, ...] = ("none", "slow layer", "holds the interpreter", "slow network")
SILENT: tuple[Kind, ...] = (*LOST, *STALLED)
"""After which a process does not answer."""


class ChaosError(Exception):
    """What the faults that raise do raise."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong."""

    kind: Kind
    stage: int
    """The rank, where there are replicas."""
    micro_batch: int = 0
    """Where, in the phase of opening: before groups, before channels, or between two of these."""
    phase: Phase = "running"

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
    """Makes faults happen on its rank; a listener, to know the micro-batch of a forward."""

    def __init__(
        self, rank: int, struck: "SynchronizedArray[float]", silent: Any, broken: Any
    ) -> None:
        """Note when they happen.

        Args:
            rank: Of this process.
            struck: By rank: when (seconds, on the clock that all processes share); 0: not yet.
            silent: By rank: whether it will not answer.
            broken: The event that the network, of which it was time, has been broken.
        """
        self._rank, self._struck, self._silent, self._broken = rank, struck, silent, broken
        self.faults: tuple[Fault, ...] = ()
        self._forwarding: int | None = None

    def started(self, placed: Placed) -> None:
        forward = isinstance(placed.instruction, ForwardPass)
        self._forwarding = placed.instruction.micro_batch if forward else None

    def finished(self, placed: Placed) -> None:
        self._forwarding = None
        self._raise("listener raises", getattr(placed.instruction, "micro_batch", -1))

    def here(self, kind: Kind, micro_batch: int | None = None, phase: Phase = "running") -> bool:
        """Whether this rank is to suffer a fault of that kind, there."""
        wanted = kind, self._rank, phase
        for fault in self.faults:
            there = micro_batch in (None, fault.micro_batch)
            if there and (fault.kind, fault.stage, fault.phase) == wanted:
                self._struck[self._rank] = time.monotonic()
                self._silent[self._rank] = kind in SILENT
                return True
        return False

    def _raise(self, kind: Kind, micro_batch: int | None = None) -> None:
        if self.here(kind, micro_batch):
            raise ChaosError(f"{kind} on stage {self._rank}")

    def strike(self, phase: Phase, micro_batch: int | None = None) -> None:
        """Let happen what can happen anywhere."""
        for kind, act in ANYWHERE.items():
            if self.here(kind, micro_batch, phase):
                act()

    def in_layer(self, x: torch.Tensor) -> torch.Tensor:
        """What the rank's saboteur makes of its input."""
        at = self._forwarding
        if at == 0:
            self._raise("new shape raises")
        self._raise("layer raises", at)
        self.strike("running", at)
        for kind, (make, _) in ODD_ERRORS.items():
            if self.here(kind, at):
                raise make()
        if self.here("no descriptors", at):
            _open_all()
        if any(self.here(kind, at) for kind in BREAK):
            assert self._broken.wait(BROKEN_SECONDS), "the network was not broken"
        if self.here("slow layer", at):
            time.sleep(0.3)
        if self.here("holds the interpreter", at):
            ctypes.PyDLL(None).usleep(800_000)
        return x * float("nan") if self.here("nan", at) else x

    def in_loss(self, output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Mean squared error."""
        self._raise("loss raises", self._forwarding)
        return nn.functional.mse_loss(output, label)

    def data(self) -> Iterator[Any]:
        """The micro-batches, as this stage's loader gives them."""
        kinds = {fault.kind for fault in self.faults}
        data = NEW_SHAPE if "new shape raises" in kinds else DATA
        if self.here("shuffled loader"):
            data = data[1:] + data[:1]
        for number, pair in enumerate(data):
            if self.here("short iterator", number):
                return
            self._raise("iterator raises", number)
            yield pair


class Saboteur(nn.Module):
    """A layer that does nothing to its input, unless its stage's trap says so."""

    trap: Trap | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.trap is None else self.trap.in_layer(x)

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """Asked for by saves and loads."""
        if self.trap is not None:
            self.trap.strike("saving")
            self.trap.strike("loading")
        return super().state_dict(*args, **options)


def _open_all() -> None:
    """Open descriptors until the system gives no more; they are closed with the exception."""
    files = []
    while True:
        files.append(open(os.devnull, "rb"))  # noqa: SIM115


def _raises() -> None:
    raise ChaosError("raises")


ANYWHERE: dict[Kind, Callable[[], object]] = {
    "raises": _raises,
    "interrupted": lambda: os.kill(os.getpid(), signal.SIGINT),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exits": lambda: os._exit(3),
    "crashes": lambda: ctypes.string_at(0),
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "hangs": lambda: time.sleep(3600),
}
"""What can happen in any phase."""


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
