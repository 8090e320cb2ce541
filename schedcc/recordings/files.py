"""Reading the files of a recording.

Nothing here expects a whole file. A line that cannot be read is named as damage, and the rest is
used.
"""

import fcntl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError
from pydantic_core import from_json

from schedcc.io.bounded import is_regular
from schedcc.io.plain_text import visible
from schedcc.io.plan_files import explain
from schedcc.recordings.events import Events
from schedcc.recordings.recording import PipelineId, RankRecording, Recording
from schedcc.table.materialise import collection_paused
from schedcc.table.ranges import gaps, in_words
from schemas.recording import RecordingHeader, rank_files

MOST_FILES = 2**16
"""Ranks of a recording."""
MOST_BYTES = 2**34
"""Of the file of one rank."""
_AT_ONCE = 2**16
LONGEST_LINE = 2**28
"""Bytes of a line; the longest is that of the plan."""


class RecordingFileError(ValueError):
    """A directory holds no recording that can be read."""


def read_recording(directory: Path) -> Recording:
    """Read the files of all ranks, in memory proportional to the number of instructions.

    Raises:
        RecordingFileError: there is no file with a readable header, or there are too many.
    """
    files = rank_files(directory)
    if not files:
        what = "holds no recording (rank_*.jsonl)" if directory.is_dir() else "is no directory"
        raise RecordingFileError(f"{visible(directory)} {what}")
    if len(files) > MOST_FILES:
        found = f"holds {len(files):,} files of ranks"
        raise RecordingFileError(f"{visible(directory)} {found}, needed at most {MOST_FILES:,}")
    ranks: list[RankRecording] = []
    damages: list[str] = []
    wall: dict[str, int] = {}
    with collection_paused():
        for file in files:
            try:
                ranks.append(_read_rank(file, wall))
            except RecordingFileError as error:
                damages.append(str(error))
    if not ranks:
        raise RecordingFileError(f"{visible(directory)}: {damages[0]}")
    damages += [damage for rank in ranks for damage in rank.damages]
    recording = Recording(directory, tuple(ranks), tuple(damages))
    _place_stages(recording)
    return replace(recording, damages=(*damages, *_missing(recording)))


def _read_rank(file: Path, wall: dict[str, int]) -> RankRecording:
    name = visible(file.name)
    try:
        if not is_regular(file):
            raise RecordingFileError(f"{name}: not a recording: needed a regular file")
        with file.open("rb") as opened:
            return _read_lines(file, opened, wall)
    except OSError as error:
        raise RecordingFileError(f"{name}: cannot be read: {error.strerror}") from error


def _read_lines(file: Path, opened: BinaryIO, wall: dict[str, int]) -> RankRecording:
    name, first = visible(file.name), opened.readline(LONGEST_LINE)
    if not first.endswith(b"\n"):
        raise RecordingFileError(f"{name}: breaks off in its header ({len(first)} bytes)")
    try:
        header = RecordingHeader.model_validate(from_json(first))
    except ValidationError as error:
        raise RecordingFileError(f"{name}: not a recording: {explain(error)}") from error
    except ValueError as error:
        raise RecordingFileError(f"{name}: not a recording: {error}") from error
    rank = RankRecording(file, header, (header.stage_id,), alive=_is_locked(file))
    # Ranks with one clock share its offset to the time of day, as the first of them has seen it.
    offset = wall.setdefault(header.clock, header.wall_ns - header.monotonic_ns)
    rank.first = rank.last = offset + header.monotonic_ns
    events, size = Events(rank), len(first)
    for block in _blocks(opened):
        size += len(block)
        whole = block.rfind(b"\n") + 1
        if size > MOST_BYTES or len(block) - whole >= LONGEST_LINE:
            most = f"{LONGEST_LINE:,} bytes in a line and {MOST_BYTES:,} in a file"
            events.damage(f"{name}: the rest is not read, needed at most {most}")
            break
        if whole:
            events.add(block[:whole])
        if whole < len(block):  # the end of the file
            rank.cut = True
            events.flush()
            rank.damages.append(
                f"{name}: the last line breaks off after {len(block) - whole} bytes "
                "(its process ended while writing)"
            )
    events.flush()
    return rank


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    """Whole lines, some at a time; only the last may break off, at the end or by its length."""
    while block := file.read(_AT_ONCE):
        yield block if block.endswith(b"\n") else block + file.readline(LONGEST_LINE)


def _place_stages(recording: Recording) -> None:
    """Say which stages the ranks hold, also of those that recorded no plan."""
    for by_rank in recording.pipelines.values():
        plans = (run.plan.header for rank in by_rank.values() for run in rank.runs if run.plan)
        plan = next(plans, None)
        for number, rank in by_rank.items():
            own = next((run.plan.header for run in rank.runs if run.plan), plan)
            if own is not None:
                rank.stages = own.stages_of(number)


def _missing(recording: Recording) -> list[str]:
    """Which ranks of the pipelines have no file, and which files do not belong together."""
    damages, ranks = [], recording.ranks
    sizes = {rank.header.stages for rank in ranks}
    unit = "stage" if all(rank.stages == (rank.pipeline_rank,) for rank in ranks) else "rank"
    if len(sizes) > 1:
        damages.append(
            "the files are of different runs: "
            + ", ".join(f"{r.file_name} of {r.header.stages} {unit}s" for r in ranks)
        )
    names: dict[int, list[str]] = {}
    for rank in ranks:
        names.setdefault(rank.header.rank, []).append(rank.file_name)
    for number, files in names.items():
        if len(files) > 1:
            damages.append(f"{len(files)} files are of rank {number}: {', '.join(files)}")
    for pipeline, by_rank in recording.pipelines.items():
        missing = gaps(by_rank, max(sizes))
        if missing:
            which = "" if pipeline == PipelineId(0) else f" of {pipeline}"
            damages.append(f"no recording of {in_words(unit, missing)}{which}")
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
