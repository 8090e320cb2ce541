"""Recordings, read back: every rank's runs, with what can be said of a file that broke off.

Nothing here expects a whole file. A line that cannot be read is named as damage, and the rest is
used.
"""

import fcntl
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import from_json

from schedcc.files import explain
from schedcc.ranges import gaps, in_words
from schemas import Instruction, PipelinePlan, Placed, StagePlan, StageProgram
from schemas.recording import (
    EVENT,
    Closed,
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


@dataclass
class Executed:
    """One instruction that was entered; times are in nanoseconds, common to all ranks."""

    placed: Placed
    start: int
    end: int | None = None
    """`None`: it was never left."""
    nbytes: int | None = None


@dataclass
class Run:
    """One execution of a plan by one rank."""

    number: int
    fingerprint: str
    start: int
    plan: StagePlan | None
    """`None` where the file does not hold it."""
    executed: list[Executed] = field(default_factory=list)
    end: int | None = None
    """`None`: the run did not get to its end."""

    @property
    def open(self) -> Executed | None:
        """The instruction that was entered and not left."""
        last = self.executed[-1] if self.executed else None
        return last if last is not None and last.end is None else None


@dataclass
class RankRecording:
    """One rank's file."""

    file: Path
    header: RecordingHeader
    runs: list[Run] = field(default_factory=list)
    errors: list[tuple[int, ErrorRaised]] = field(default_factory=list)
    """All errors, each with its time."""
    failed: bool = False
    """Whether the last thing that happened was an error."""
    closed: bool = False
    alive: bool = False
    """Whether the process that writes the file still runs."""
    first: int = 0
    last: int = 0
    """Times of the first and the last line."""
    cut: bool = False
    """Whether the last line breaks off."""
    damages: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The rank in words, for messages."""
        return f"rank {self.header.rank} (stage {self.header.stage_id})"

    def run(self, number: int) -> Run | None:
        """The run with this number."""
        return next((run for run in self.runs if run.number == number), None)


@dataclass(frozen=True)
class Recording:
    """All ranks' files."""

    directory: Path
    ranks: tuple[RankRecording, ...]
    damages: tuple[str, ...]
    """What could not be read, and which ranks are missing."""

    @cached_property
    def last(self) -> int:
        """Time of the last event anywhere."""
        return max(rank.last for rank in self.ranks)

    @property
    def one_clock(self) -> bool:
        """Whether all times come from one clock, so that they compare exactly."""
        return len({rank.header.clock for rank in self.ranks}) == 1

    def replica(self, number: int) -> dict[int, RankRecording]:
        """The ranks of one copy of the pipeline, by stage."""
        return {r.header.stage_id: r for r in self.ranks if r.header.replica == number}

    def plan(self, replica: int, run: int) -> PipelinePlan | None:
        """The plan of a run, put together from those of the stages that recorded theirs."""
        found = [r.run(run) for _, r in sorted(self.replica(replica).items())]
        return joined(run.plan for run in found if run is not None and run.plan is not None)


def joined(plans: Iterable[StagePlan]) -> PipelinePlan | None:
    """The plan that stage plans are parts of; `None` of none."""
    known = list(plans)
    if not known:
        return None
    return PipelinePlan(
        schedule=known[0].schedule,
        micro_batches=max(plan.micro_batches for plan in known),
        stages=max(plan.stages for plan in known),
        num_buffers=max(plan.num_buffers for plan in known),
        programs=tuple(
            StageProgram(stage_id=plan.stage_id, steps=plan.steps, epilogue=plan.epilogue)
            for plan in known
        ),
    )


def read_recording(directory: Path) -> Recording:
    """Read the files of all ranks.

    Raises:
        RecordingFileError: there is no file with a readable header.
    """
    files = rank_files(directory)
    if not files:
        what = "holds no recording (rank_*.jsonl)" if directory.is_dir() else "is no directory"
        raise RecordingFileError(f"{directory} {what}")
    ranks: list[RankRecording] = []
    damages: list[str] = []
    wall: dict[str, int] = {}
    for file in files:
        try:
            ranks.append(_read_rank(file, wall))
        except RecordingFileError as error:
            damages.append(str(error))
    if not ranks:
        raise RecordingFileError(f"{directory}: {damages[0]}")
    damages += [damage for rank in ranks for damage in rank.damages]
    damages += _missing(ranks)
    return Recording(directory, tuple(ranks), tuple(damages))


def _read_rank(file: Path, wall: dict[str, int]) -> RankRecording:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise RecordingFileError(f"{file.name}: cannot be read: {error.strerror}") from error
    lines = content.split(b"\n")
    rest = lines.pop()  # what follows the last line end: nothing, unless a line breaks off
    if not lines:
        raise RecordingFileError(f"{file.name}: breaks off in its header ({len(rest)} bytes)")
    try:
        header = RecordingHeader.model_validate(from_json(lines[0]))
    except ValidationError as error:
        raise RecordingFileError(f"{file.name}: not a recording: {explain(error)}") from error
    except ValueError as error:
        raise RecordingFileError(f"{file.name}: not a recording: {error}") from error
    rank = RankRecording(file, header, alive=_is_locked(file))
    # Ranks with one clock share its offset to the time of day, as the first of them has seen it.
    offset = wall.setdefault(header.clock, header.wall_ns - header.monotonic_ns)
    rank.first = rank.last = offset + header.monotonic_ns
    reader = _Events(rank)
    for number, line in enumerate(lines[1:], start=2):
        try:
            reader.take(EVENT.validate_python(from_json(line)), number)
        except ValidationError as error:
            rank.damages.append(f"{file.name}, line {number}: no event: {explain(error)}")
        except ValueError as error:
            rank.damages.append(f"{file.name}, line {number}: not JSON: {error}")
    if rest:
        rank.cut = True
        rank.damages.append(
            f"{file.name}: the last line breaks off after {len(rest)} bytes "
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
            case RunEnded():
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

    def _damage(self, line: int, what: str) -> None:
        self._rank.damages.append(f"{self._rank.file.name}, line {line}: {what}")


def _missing(ranks: list[RankRecording]) -> list[str]:
    """Which stages of the replicas have no file, and which files do not belong together."""
    damages = []
    sizes = {rank.header.stages for rank in ranks}
    if len(sizes) > 1:
        damages.append(
            "the files are of different runs: "
            + ", ".join(f"{r.file.name} of {r.header.stages} stages" for r in ranks)
        )
    for replica in sorted({rank.header.replica for rank in ranks}):
        found = (r.header.stage_id for r in ranks if r.header.replica == replica)
        missing = gaps(found, max(sizes))
        if missing:
            copies = "" if replica == 0 else f" of replica {replica}"
            damages.append(f"no recording of {in_words('stage', missing)}{copies}")
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
