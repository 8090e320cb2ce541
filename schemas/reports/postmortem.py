"""What a recording says about a run that died, as `schedcc postmortem --json` prints it."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from schemas.base import Frozen
from schemas.instruction_set.instructions import Instruction
from schemas.recording import ErrorRaised


class RankState(StrEnum):
    """How a rank's file ends."""

    CLOSED = "closed"
    FAILED = "failed"
    """With an error, after which nothing was run."""
    VANISHED = "vanished"
    """Without a word."""
    RUNNING = "running"
    """It does not end: the process still holds it open."""


class ExecutionPoint(Frozen):
    """Where a rank is in a run."""

    rank: int
    stage_id: int | None
    """The rank's stage; `None` where it does not hold one."""
    run: int
    step: int | None
    instruction: Instruction | None = Field(discriminator="op")
    """`None`: the rank has not begun the run."""

    def __str__(self) -> str:
        return f"rank {self.rank}, {self.where}"

    @property
    def where(self) -> str:
        """The instruction and its place, without the rank."""
        if self.instruction is None:
            return f"run {self.run}, which it has not begun"
        place = "epilogue" if self.step is None else f"step {self.step}"
        return f"{place}: {self.instruction}"


class Activity(Frozen):
    """What a rank did in all its runs."""

    runs: int
    instructions: int
    forward_seconds: float
    transfer_seconds: float
    """In sends, receives and their waits, waiting for the peer included."""
    other_seconds: float
    """In all other instructions."""
    sent_bytes: int
    received_bytes: int


class RankStatus(Frozen):
    """What one rank was doing when its file ends."""

    rank: int
    stage_id: int | None
    """The rank's stage; `None` where it does not hold one."""
    stages: tuple[int, ...]
    """The stages that the rank holds."""
    replica: int
    pipeline: str | None = None
    """As in the recording's header."""
    state: RankState
    run: int | None
    """The run that it was in, or the last one that it was in; `None` before the first."""
    micro_batches: int | None = None
    """How many micro-batches the data of this run held, where a rank knew of fewer than planned."""
    instruction: ExecutionPoint | None
    """The instruction that it had entered and not left."""
    since: float
    """Seconds from the entry (or, between instructions, from the last line) to the last event of
    any rank."""
    error: ErrorRaised | None
    """The error with which the file ends."""
    activity: Activity


class Wait(Frozen):
    """An instruction that could not end, and the one of another rank that it needed."""

    waiter: ExecutionPoint
    needed: ExecutionPoint
    why: str
    """As in `schedcc.dependency_graph`."""


class Cause(Frozen):
    """What ended the run, or holds it up."""

    kind: Literal["error", "vanished", "stuck", "deadlock", "unknown"]
    ranks: tuple[int, ...]
    message: str
    traceback: str | None = None


class Postmortem(Frozen):
    """What every rank was doing, who waited for whom, and which rank was the cause."""

    format: Literal["schedcc.postmortem/1"] = "schedcc.postmortem/1"
    cause: Cause | None
    """`None`: every rank ended in order."""
    ranks: tuple[RankStatus, ...]
    waits: tuple[Wait, ...]
    damages: tuple[str, ...]
    """What could not be read, and which ranks are missing."""
    seconds: float
    """From the first line of any rank to the last."""
