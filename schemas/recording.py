"""Recordings: what each rank executed, and when, as it writes it while it runs.

A recording is a directory with one file per rank, `rank_00003.jsonl`: JSON Lines, a header and then
events in the order in which they happened::

    header
    plan                    before the first run that executes it
    run_start
      start, end            of every instruction; a start is written before anything is executed
      data_end              where the data holds fewer micro-batches than the plan
    run_end
    run_start ...
    error                   instead of an end, or between runs
    close                   the process took its leave in order

A file may break off anywhere, in the middle of a line too: that is what it is for. Times are
nanoseconds since the header's `monotonic_ns`.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, Strict, TypeAdapter

from schemas.base import Annotatable, Count
from schemas.instruction_set.instructions import Instruction
from schemas.plans import StagePlan

Number = Annotated[int, Strict(), Field(ge=0, lt=2**61)]
"""No recording has as many of anything, nor lasts as many nanoseconds."""


def rank_file(rank: int) -> str:
    """The name of a rank's file in a recording.

    >>> rank_file(3)
    'rank_00003.jsonl'
    """
    return f"rank_{rank:05d}.jsonl"


def rank_files(directory: Path) -> list[Path]:
    """The rank files in a directory, by rank; none where there is no directory."""
    return sorted(directory.glob("rank_*.jsonl"))


class RecordingHeader(Annotatable):
    """The first line of a file: who writes it, and how its times compare with those of others."""

    format: Literal["schedcc.recording/1"] = "schedcc.recording/1"
    rank: Number
    stage_id: Number
    """The rank in its pipeline, as the plan numbers it: its stage, where each rank holds one."""
    replica: Number = 0
    """The data-parallel copy of the pipeline that the rank belongs to."""
    pipeline: str | None = None
    """Names the rank's pipeline among several that make up one replica, such as `tp=1` where each
    stage is spread over a tensor-parallel dimension; `None`: the replica is one pipeline."""
    stages: Count
    """Ranks of the pipeline."""
    version: str
    """Of schedcc."""
    host: str
    pid: int
    device: str = "cpu"
    """Elsewhere than on a CPU, an instruction ends when it has been enqueued, not executed."""
    clock: str
    """Names the monotonic clock: ranks that name the same one have times of the same origin."""
    wall_ns: Number
    """Time since the epoch when the recording began."""
    monotonic_ns: Number
    """Reading of the monotonic clock at that moment; the origin of all times in the file."""


class PlanRecorded(Annotatable):
    """The plan that the following runs execute."""

    event: Literal["plan"] = "plan"
    at: Number
    fingerprint: str
    plan: StagePlan


class RunStarted(Annotatable):
    """The interpreter begins to execute the plan with this fingerprint."""

    event: Literal["run_start"] = "run_start"
    at: Number
    run: Number
    """Counts the runs of the recording."""
    fingerprint: str


class InstructionStarted(Annotatable):
    """An instruction is about to be executed."""

    event: Literal["start"] = "start"
    at: Number
    offset: Number
    """Position in the program, counted over steps and epilogue."""
    step: Number | None
    instruction: Instruction = Field(discriminator="op")


class InstructionEnded(Annotatable):
    """The instruction that started last has been executed."""

    event: Literal["end"] = "end"
    at: Number
    offset: Number
    bytes: Number | None = None
    """Size of the activation, where the instruction completed its transfer."""


class ErrorRaised(Annotatable):
    """An error left the evaluator; an instruction that has not ended is the one that raised it."""

    event: Literal["error"] = "error"
    at: Number
    kind: str
    """Name of the exception's class."""
    message: str
    traceback: str
    symptom: bool = False
    """Whether the error was suffered or told from elsewhere (a lost connection, a report of another
    stage, an interruption) rather than made here."""


class DataEnded(Annotatable):
    """The data holds fewer micro-batches than the plan; a rank writes it as soon as it knows.

    From here on, it skips the instructions of micro-batches that there are not.
    """

    event: Literal["data_end"] = "data_end"
    at: Number
    micro_batches: Number
    """How many the data holds."""


class RunEnded(Annotatable):
    """Every instruction of the plan has been executed, of as many micro-batches as there are."""

    event: Literal["run_end"] = "run_end"
    at: Number
    run: Number
    micro_batches: Number | None = None
    """How many micro-batches the data held, where that is fewer than the plan has."""


class Closed(Annotatable):
    """The recording is complete: the process ended, or let go of its evaluator."""

    event: Literal["close"] = "close"
    at: Number


RecordedEvent = Annotated[
    PlanRecorded
    | RunStarted
    | InstructionStarted
    | InstructionEnded
    | ErrorRaised
    | DataEnded
    | RunEnded
    | Closed,
    Field(discriminator="event"),
]
RecordingLine = RecordingHeader | RecordedEvent

EVENT: TypeAdapter[RecordedEvent] = TypeAdapter(RecordedEvent)
"""Reads one line after the header."""
LINE: TypeAdapter[RecordingLine] = TypeAdapter(RecordingLine)
"""Describes any line of a file."""
