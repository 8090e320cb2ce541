"""Reading the files of a recording.

Nothing here expects a whole file. A line that cannot be read is named as damage, and the rest is
used.
"""

import fcntl
from collections import Counter
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import from_json

from schedcc.io.plain_text import visible
from schedcc.io.plan_files import explain
from schedcc.recordings.recording import (
    Executed,
    PipelineId,
    RankRecording,
    Recording,
    Run,
)
from schedcc.table.ranges import gaps, in_words
from schemas import Instruction, Placed, StagePlan
from schemas.recording import (
    EVENT,
    Closed,
    DataEnded,
    ErrorRaised,
    InstructionEnded,
    InstructionStarted,
    PlanRecorded,
    RecordedEvent,
    RecordingHeader,
    RunEnded,
    RunStarted,
    rank_files,
)


class RecordingFileError(ValueError):
    """A directory holds no recording that can be read."""


def read_recording(directory: Path) -> Recording:
    """Read the files of all ranks.

    Raises:
        RecordingFileError: there is no file with a readable header.
    """
    files = rank_files(directory)
    if not files:
        what = "holds no recording (rank_*.jsonl)" if directory.is_dir() else "is no directory"
        raise RecordingFileError(f"{visible(directory)} {what}")
    ranks: list[RankRecording] = []
    damages: list[str] = []
    wall: dict[str, int] = {}
    for file in files:
        try:
            ranks.append(_read_rank(file, wall))
        except RecordingFileError as error:
            damages.append(str(error))
    if not ranks:
        raise RecordingFileError(f"{visible(directory)}: {damages[0]}")
    damages += [damage for rank in ranks for damage in rank.damages]
    recording = Recording(directory, tuple(ranks), tuple(damages))
    return replace(recording, damages=(*damages, *_missing(recording)))


def _read_rank(file: Path, wall: dict[str, int]) -> RankRecording:
    name = visible(file.name)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise RecordingFileError(f"{name}: cannot be read: {error.strerror}") from error
    lines = content.split(b"\n")
    rest = lines.pop()  # what follows the last line end: nothing, unless a line breaks off
    if not lines:
        raise RecordingFileError(f"{name}: breaks off in its header ({len(rest)} bytes)")
    try:
        header = RecordingHeader.model_validate(from_json(lines[0]))
    except ValidationError as error:
        raise RecordingFileError(f"{name}: not a recording: {explain(error)}") from error
    except ValueError as error:
        raise RecordingFileError(f"{name}: not a recording: {error}") from error
    rank = RankRecording(file, header, alive=_is_locked(file))
    # Ranks with one clock share its offset to the time of day, as the first of them has seen it.
    offset = wall.setdefault(header.clock, header.wall_ns - header.monotonic_ns)
    rank.first = rank.last = offset + header.monotonic_ns
    reader = _Events(rank)
    for number, line in enumerate(lines[1:], start=2):
        try:
            reader.take(EVENT.validate_python(from_json(line)), number)
        except ValidationError as error:
            rank.damages.append(f"{name}, line {number}: no event: {explain(error)}")
        except ValueError as error:
            rank.damages.append(f"{name}, line {number}: not JSON: {error}")
    if rest:
        rank.cut = True
        rank.damages.append(
            f"{name}: the last line breaks off after {len(rest)} bytes "
            "(its process ended while writing)"
        )
    return rank


class _Events:
    """Takes a rank's events one after the other."""

    def __init__(self, rank: RankRecording) -> None:
        self._rank, self._origin = rank, rank.first
        self._plans: dict[str, StagePlan] = {}
        self._run: Run | None = None

    def take(self, event: RecordedEvent, line: int) -> None:
        """Add an event to the recording."""
        rank, at = self._rank, self._origin + event.at
        rank.last = max(rank.last, at)
        rank.failed = isinstance(event, ErrorRaised) or (rank.failed and isinstance(event, Closed))
        match event:
            case PlanRecorded():
                self._plans[event.fingerprint] = event.plan
            case RunStarted():
                plan = self._plans.get(event.fingerprint)
                self._run = Run(event.run, event.fingerprint, at, plan)
                rank.runs.append(self._run)
            case InstructionStarted():
                self._start(event.offset, event.step, event.instruction, at, line)
            case InstructionEnded():
                self._end(event, at, line)
            case ErrorRaised():
                rank.errors.append((at, event))
                self._run = None
            case DataEnded():
                self._end_of_data(event.micro_batches, at, line)
            case RunEnded():
                if event.micro_batches is not None:
                    self._end_of_data(event.micro_batches, at, line)
                if self._run is not None:
                    self._run.end, self._run = at, None
            case Closed():
                rank.closed = True

    def _start(
        self, offset: int, step: int | None, instruction: Instruction, at: int, line: int
    ) -> None:
        if self._run is None:
            self._damage(line, f"{instruction} starts outside of a run")
            return
        if self._run.open is not None:
            self._damage(
                line, f"{instruction} starts inside of {self._run.open.placed.instruction}"
            )
            self._run.open.end = at
        self._run.executed.append(Executed(Placed(offset, step, instruction), at))

    def _end(self, event: InstructionEnded, at: int, line: int) -> None:
        current = self._run.open if self._run is not None else None
        if current is None or current.placed.offset != event.offset:
            self._damage(line, f"instruction {event.offset} ends, but did not start")
            return
        current.end, current.nbytes = at, event.bytes

    def _end_of_data(self, micro_batches: int, at: int, line: int) -> None:
        run = self._run
        if run is None:
            self._damage(line, "the data ends outside of a run")
        elif run.micro_batches is None:
            run.micro_batches, run.told = micro_batches, len(run.executed)
            run.data_ended = at
        elif run.micro_batches != micro_batches:
            self._damage(
                line,
                f"the data ends after {micro_batches} micro-batches, and after "
                f"{run.micro_batches} before",
            )

    def _damage(self, line: int, what: str) -> None:
        self._rank.damages.append(f"{self._rank.file_name}, line {line}: {what}")


def _missing(recording: Recording) -> list[str]:
    """Which stages of the pipelines have no file, and which files do not belong together."""
    damages, ranks = [], recording.ranks
    sizes = {rank.header.stages for rank in ranks}
    if len(sizes) > 1:
        damages.append(
            "the files are of different runs: "
            + ", ".join(f"{r.file_name} of {r.header.stages} stages" for r in ranks)
        )
    for rank, count in Counter(rank.header.rank for rank in ranks).items():
        if count > 1:
            names = ", ".join(r.file_name for r in ranks if r.header.rank == rank)
            damages.append(f"{count} files are of rank {rank}: {names}")
    for pipeline, by_stage in recording.pipelines.items():
        missing = gaps(by_stage, max(sizes))
        if missing:
            which = "" if pipeline == PipelineId(0) else f" of {pipeline}"
            damages.append(f"no recording of {in_words('stage', missing)}{which}")
    return damages


def _is_locked(file: Path) -> bool:
    """Whether a process still holds the lock that a recorder keeps on its file."""
    with file.open("rb") as opened:
        try:
            fcntl.lockf(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return True
        except OSError:  # a file system without locks
            return False
    return False
