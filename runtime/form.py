"""The form in which plans run: blocking, overlapped, or whichever is measured to be faster.

Overlap hides transfers behind forwards, at the price of a hand-over between threads for each
transfer. Where a forward is shorter than that, the blocking form may win.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from runtime.activation import Signature
from runtime.device import Clock, random_state_kept
from runtime.interpreter import Interpreter
from runtime.transport.protocol import Transport

Overlap = bool | Literal["auto"]
"""Whether plans are overlapped; `"auto"`: if that is measured to be faster."""

ENOUGH_SECONDS = 0.3
"""After so much measuring nothing is repeated any more."""

REPEATS = 8
"""The most repeats of each form."""

ADVANTAGE = 0.97
"""The blocking form has to be faster by this factor to be preferred: less may be chance."""


@dataclass(frozen=True)
class Trial:
    """What a run brings along for measuring forms."""

    inputs: tuple[Signature, ...]
    """The signature of each micro-batch's input, the same on every stage."""
    run: Callable[[Interpreter], None]
    """Executes a plan without a loss on the run's first micro-batches, and drops what comes out."""


class FormChoice:
    """Decides between the forms, the same on all stages."""

    def __init__(self, overlap: Overlap, transport: Transport) -> None:
        """Decide by `overlap` for the stages of `transport`.

        Raises:
            ValueError: `overlap` is none of the choices.
        """
        if overlap not in (True, False, "auto"):
            raise ValueError(f"overlap is {overlap!r}, needed True, False or 'auto'")
        self._overlap, self._transport = overlap, transport
        self._measured: dict[Signature, bool] = {}

    def overlapped(self, trial: Trial, plan: Callable[[int, bool], Interpreter]) -> bool:
        """Whether a run is to be overlapped; measured once for each first input signature.

        Args:
            trial: The run that is about to start.
            plan: `(micro_batches, overlap) -> interpreter` of a plan without a loss.
        """
        if self._overlap != "auto" or self._transport.stages == 1 or not trial.inputs:
            return bool(self._overlap)
        first = trial.inputs[0]
        if first not in self._measured:
            self._measured[first] = self._measure(trial, plan)
        return self._measured[first]

    def _measure(self, trial: Trial, plan: Callable[[int, bool], Interpreter]) -> bool:
        """Run both forms in turn on a few micro-batches, and compare the fastest runs."""
        micro_batches = min(len(trial.inputs), 4 * self._transport.stages)
        blocking, overlapped = plan(micro_batches, False), plan(micro_batches, True)
        seconds: dict[bool, list[float]] = {False: [], True: []}
        spent = 0.0
        while spent < ENOUGH_SECONDS and len(seconds[True]) < REPEATS:
            for overlap, interpreter in ((False, blocking), (True, overlapped)):
                seconds[overlap].append(self._seconds(trial, interpreter))
                spent += seconds[overlap][-1]  # the same on all stages, and so is the decision
        return min(seconds[False]) > ADVANTAGE * min(seconds[True])

    def _seconds(self, trial: Trial, interpreter: Interpreter) -> float:
        """How long the slowest stage takes."""
        clock = Clock(self._transport.device)
        self._transport.gather_objects(None)  # nobody starts before all are ready
        start = time.perf_counter()
        with random_state_kept(self._transport.device):
            trial.run(interpreter)
        clock.synchronize()
        return float(max(self._transport.gather_objects(time.perf_counter() - start)))
