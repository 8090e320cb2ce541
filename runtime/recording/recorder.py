"""The flight recorder: a listener that writes what a stage executes, while it executes it.

A start is written before its instruction is executed, and no line waits in this process: where a
run hangs or its process is killed, the file shows what was entered and never left. The format is
`schemas.recording`; `schedcc postmortem` and `schedcc conform` read it.
"""

import os
import platform
import time
import traceback
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel

import schedcc
from runtime.failure.error_text import encodable, text_of
from runtime.failure.errors import RemoteError
from runtime.recording.line_log import LineLog
from runtime.tensors.activation import Signature
from runtime.transport import Transport, TransportError
from schemas import Direction, Phase, Placed, StagePlan, TransferInstruction
from schemas.recording import (
    Closed,
    DataEnded,
    ErrorRaised,
    PlanRecorded,
    RecordingHeader,
    RunEnded,
    RunStarted,
    rank_file,
    rank_files,
)


class RecordingError(ValueError):
    """A recording was asked for where none can be made."""


class TransferSignatures(Protocol):
    """The signatures of a run's transfers."""

    def signature(self, direction: Direction, stage: int, micro_batch: int) -> Signature:
        """What a stage receives or sends."""


class Recorder:
    """Records one stage; give it to the interpreter as a listener.

    It closes its file when it is let go of, or else when the process exits in order.
    """

    def __init__(self, directory: str | Path, transport: Transport) -> None:
        """Create this rank's file in `directory`, which is created where it does not exist.

        Raises:
            RecordingError: the directory holds a recording of this rank, or cannot be written.
        """
        if not isinstance(directory, (str, Path)) or not str(directory):
            raise RecordingError(f"record is {directory!r}, needed the path of a directory")
        directory = Path(directory)
        rank = transport.global_rank
        path = directory / rank_file(rank)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._log = LineLog(path)
        except OSError as error:
            if path.exists():
                raise _refusal(directory, path.name) from error
            raise RecordingError(f"{directory}: cannot be written: {error.strerror}") from error
        self._origin = time.monotonic_ns()
        self._runs = 0
        self._plans: set[str] = set()
        self._plan: StagePlan | None = None
        self._fingerprint = ""
        self._shapes: TransferSignatures | None = None
        self._noted: int | None = None
        self._micro_batches: int | None = None
        header = RecordingHeader(
            rank=rank,
            stage_id=transport.rank,
            replica=transport.replica,
            pipeline=transport.name,
            stages=transport.ranks,
            version=schedcc.__version__,
            host=platform.node(),
            pid=os.getpid(),
            device=str(transport.device),
            clock=_clock(),
            wall_ns=time.time_ns(),
            monotonic_ns=self._origin,
        )
        self._write(header)
        self._finalizer = weakref.finalize(self, _close, self._log, self._origin)

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Record the error that leaves the block."""
        self._noted = None
        try:
            yield
        except BaseException as error:
            self._error(error)
            raise

    @contextmanager
    def run(self, plan: StagePlan, shapes: TransferSignatures) -> Iterator[None]:
        """Record a run of the interpreter: its plan, its end, or its error.

        Args:
            plan: What is executed.
            shapes: The signatures of its transfers.
        """
        if plan is not self._plan:
            self._plan, self._fingerprint = plan, plan.fingerprint
        if self._fingerprint not in self._plans:
            self._plans.add(self._fingerprint)
            self._write(PlanRecorded(at=self._now(), fingerprint=self._fingerprint, plan=plan))
        number, self._runs, self._shapes = self._runs, self._runs + 1, shapes
        self._write(RunStarted(at=self._now(), run=number, fingerprint=self._fingerprint))
        self._micro_batches = None
        with self.evaluation():
            yield
        self._write(RunEnded(at=self._now(), run=number, micro_batches=self._micro_batches))

    def data_ended(self, micro_batches: int) -> None:
        """Write that the data holds fewer micro-batches than the plan, as soon as that is known."""
        self._micro_batches = micro_batches
        self._write(DataEnded(at=self._now(), micro_batches=micro_batches))

    def started(self, placed: Placed) -> None:
        """Write that the instruction is entered."""
        # By hand, here and below: a model for each event would take longer than the write.
        step = "null" if placed.step is None else placed.step
        self._log.write(
            f'{{"event":"start","at":{self._now()},"offset":{placed.offset},"step":{step},'
            f'"instruction":{placed.instruction.model_dump_json()}}}'
        )

    def finished(self, placed: Placed) -> None:
        """Write that the instruction was left, and what it moved."""
        now, nbytes = self._now(), self._nbytes(placed)
        moved = "" if nbytes is None else f',"bytes":{nbytes}'
        self._log.write(f'{{"event":"end","at":{now},"offset":{placed.offset}{moved}}}')

    def close(self) -> None:
        """Complete the recording; nothing is recorded afterwards."""
        self._finalizer()

    def _nbytes(self, placed: Placed) -> int | None:
        instruction = placed.instruction
        if not isinstance(instruction, TransferInstruction) or self._shapes is None:
            return None
        if instruction.effects.phase is Phase.POST:  # nothing has moved yet
            return None
        signature = self._shapes.signature(
            instruction.direction, instruction.stage, instruction.micro_batch
        )
        return signature.nbytes

    def _error(self, error: BaseException) -> None:
        if self._noted == id(error):  # by the run, on its way out through the evaluation
            return
        self._noted = id(error)
        symptom = not isinstance(error, Exception) or isinstance(
            error, TransportError | RemoteError
        )
        self._write(
            ErrorRaised(
                at=self._now(),
                kind=type(error).__name__,
                message=text_of(error),
                traceback=_traceback(error),
                symptom=symptom,
            )
        )
        self._log.sync()

    def _write(self, line: BaseModel) -> None:
        self._log.write(line.model_dump_json())

    def _now(self) -> int:
        return time.monotonic_ns() - self._origin


def require_new(directory: Path) -> None:
    """Refuse a directory that holds a recording, before any process is started.

    Raises:
        RecordingError: it holds one: what a run that died left behind is not overwritten; or it
            is a file.
    """
    if directory.exists() and not directory.is_dir():
        raise RecordingError(f"{directory} is no directory, needed a new or empty one")
    found = rank_files(directory)
    if found:
        raise _refusal(directory, found[0].name)


def _refusal(directory: Path, name: str) -> RecordingError:
    return RecordingError(
        f"{directory} already holds a recording ({name}), needed a new or empty directory"
    )


def _traceback(error: BaseException) -> str:
    """The error's traceback, without the frames of this file that it has passed through."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return encodable("".join(traceback.format_exception(type(error), error, trace)))


def _close(log: LineLog, origin: int) -> None:
    log.write(Closed(at=time.monotonic_ns() - origin).model_dump_json())
    log.close()


def _clock() -> str:
    """What tells this machine's monotonic clock, as of its last boot, from all others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # not Linux
        return platform.node()
