"""The instruction pointer of a rank: a listener beside the interpreter's loop."""

import time
from collections import deque
from collections.abc import Callable

from runtime.device import Clock, Mark
from schemas import (
    ForwardPass,
    HandOver,
    Instruction,
    MoveLogits,
    Phase,
    Placed,
    ResultInstruction,
    TransferInstruction,
)
from schemas.base import Frozen

ALL_STAGES = "all stages"
LEAD = 3
"""Forwards that the device may have before it: while one runs, the next ones are there already.

Without a bound the host would enqueue a whole run: outputs on their way to the next rank stay
allocated until the device has sent them, so memory would grow with M; torch's watchdog counts an
operation's time from when it was enqueued; and an abort waits for all that was."""

START = "the start of the evaluation"


class RankStatus(Frozen):
    """Where a rank is, and since when."""

    at: str
    waits_for: str = ""
    """The stage or stages that it cannot go on without; empty: none."""
    seconds: float
    """How long it has been there."""
    progress: int
    """Grows whenever the rank has got on."""


class InstructionPointer:
    """Follows a rank through a run; read by the threads that watch it.

    On a GPU the host runs ahead of the device, so there the pointer also knows which instructions
    the device has still to finish.
    """

    def __init__(self, check: Callable[[], None], clock: Clock) -> None:
        """Call `check` before each instruction; it raises if the run has failed elsewhere."""
        self.check, self._clock = check, clock
        self._place: tuple[str | Placed, str, float] = (START, ALL_STAGES, time.monotonic())
        self._progress = 0
        self.patient = False
        """Whether what the stage is at may take as long as it likes, while its process lives."""
        self.before = 0
        """Micro-batches that came before those which the instructions name."""
        self._marks: deque[tuple[Placed, Mark]] = deque()
        """What the device has still to reach, and the instruction before it."""
        self._forwards = 0
        """How many of them are forwards."""

    def started(self, placed: Placed) -> None:
        """The instruction is about to be executed."""
        self.check()
        if placed.step is None:
            self.drain()
        elif isinstance(placed.instruction, ForwardPass):
            while self._forwards >= LEAD:
                self._await_oldest()
        self._place = (placed, "", time.monotonic())

    def finished(self, placed: Placed) -> None:
        """The instruction has been executed or, on a GPU, enqueued."""
        self._progress += 1
        if self._clock.on_gpu:
            self._marks.append((placed, self._clock.mark()))
            self._forwards += isinstance(placed.instruction, ForwardPass)
            while self._marks and self._clock.reached(self._marks[0][1]):
                self._forget_oldest()

    def phase(self, at: str, *, waits_for: str = "", patient: bool = False) -> None:
        """The rank does something that no instruction stands for.

        Args:
            at: What.
            waits_for: Whom it cannot go on without.
            patient: Whether it may take as long as it likes, while the process lives.
        """
        self.check()
        self._progress += 1
        self.patient = patient
        self._place = (at, waits_for, time.monotonic())

    def drain(self) -> None:
        """Let the device finish what was enqueued, and notice meanwhile if the run has failed.

        A host that blocks in a device's `synchronize` could not be told.
        """
        while self._marks:
            self._await_oldest()

    def settle(self) -> None:
        """Wait until the device has done what it was given, and notice if the run has failed."""
        self.drain()
        if self._clock.on_gpu:
            self._clock.wait(self.check)

    def alive(self) -> None:
        """The process lives; counts as progress where nothing else is asked for."""
        self._progress += self.patient

    def status(self) -> RankStatus:
        """Where the rank is now."""
        where, waits_for, since = self._place
        if isinstance(where, Placed):
            waits_for = _waits_for(where.instruction)
            where = f"{where.where}: {where.instruction!r}"
            if self.before:
                where += f" (counted from micro-batch {self.before})"
        return RankStatus(
            at=where,
            waits_for=waits_for,
            seconds=time.monotonic() - since,
            progress=self._progress,
        )

    def _await_oldest(self) -> None:
        """Poll until the device has finished the oldest instruction that it has."""
        placed, mark = self._marks[0]
        self._place = (placed, "", time.monotonic())
        self._clock.wait(self.check, mark)
        self._progress += 1
        self._forget_oldest()

    def _forget_oldest(self) -> None:
        placed, _ = self._marks.popleft()
        self._forwards -= isinstance(placed.instruction, ForwardPass)


def _waits_for(instruction: Instruction) -> str:
    match instruction:
        case TransferInstruction() if instruction.effects.phase is not Phase.POST:
            return f"stage {instruction.peer}"
        case MoveLogits():
            return f"stages {instruction.source} and {instruction.destination}"
        case HandOver():
            return ALL_STAGES
        case ResultInstruction() if instruction.over_replicas:
            return "all replicas"
        case _:
            return ""
