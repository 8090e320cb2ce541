"""The events of one rank's file, taken one after the other.

Almost all lines are starts and ends of what the plan has. They are taken many at a time
(`schedcc.recordings.pairs`); every other line is read by its model, which says what is wrong.
"""

from itertools import chain, groupby
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from schedcc.io.plan_columns import (
    LARGEST_NUMBER,
    ProgramColumns,
    fits_columns,
    program_columns,
)
from schedcc.io.plan_files import explain
from schedcc.recordings.executions import Executions
from schedcc.recordings.pairs import Planned, executed_pairs
from schedcc.recordings.recording import RankRecording, RecordedPlan, RecordedRun
from schedcc.table.codes import NONE
from schemas import Placed
from schemas.first_format import FIRST_FORMATS, upgraded_instruction
from schemas.recording import (
    EVENT,
    Closed,
    DataEnded,
    ErrorRaised,
    InstructionEnded,
    InstructionStarted,
    PlanRecorded,
    RecordedEvent,
    RunEnded,
    RunStarted,
)

_OFTEN = tuple(
    b'{"event":' + space + event for space in (b"", b" ") for event in (b'"start"', b'"end"')
)
_TOO_LARGE = f"names a number of {LARGEST_NUMBER:,} or more"
LISTED = 100
"""Damages of a file that are listed; the others are counted."""


class Events:
    """Takes a rank's lines after the header."""

    def __init__(self, rank: RankRecording) -> None:
        """Nothing has been taken yet."""
        self._rank, self._origin = rank, rank.first
        self._plans: dict[str, RecordedPlan] = {}
        self._first_format = True
        """Whether instructions may not name their stage: until a plan names those of its own."""
        self._run: RecordedRun | None = None
        self._planned: dict[str, list[Planned]] = {}
        self._due: list[Planned] = []
        """The program of the current run, as the file held it when the run began."""
        self._waiting = b""
        self._taken = 1
        """Lines of the file that have been taken, the header included."""
        self._unlisted = 0

    def add(self, block: bytes) -> None:
        """Take some whole lines; a start at the end of them may wait for its end."""
        block, self._waiting = self._waiting + block, b""
        if block.count(b"\n") == _count_often(block):
            self._take_often(block, more=True)
            return
        lines = block.split(b"\n")
        for often, own in groupby(lines[:-1], key=lambda line: line.startswith(_OFTEN)):
            if often:
                self._take_often(b"".join(line + b"\n" for line in own))
            else:
                for line in own:
                    self._take(line)

    def flush(self) -> None:
        """Take what has been added; to be called at the end."""
        waiting, self._waiting = self._waiting, b""
        self._take_often(waiting)
        if self._unlisted:
            more = f"{self._rank.file_name}: {self._unlisted:,} more lines that cannot be used"
            self._rank.damages.append(more)
            self._unlisted = 0

    def damage(self, what: str) -> None:
        """Note what cannot be used; of many, the first."""
        if len(self._rank.damages) < LISTED:
            self._rank.damages.append(what)
        else:
            self._unlisted += 1

    def _take_often(self, block: bytes, *, more: bool = False) -> None:
        """Take lines that are starts and ends; `more`: others may follow."""
        if block and self._run is not None and self._run.executed.is_open:
            line, _, block = block.partition(b"\n")
            self._take(line)
        lines = block.count(b"\n")
        pairs = block
        if lines % 2:
            pairs = block[: block.rfind(b"\n", 0, -1) + 1]
        if self._take_pairs(pairs, lines - lines % 2):
            block = block[len(pairs) :]
            if more:
                self._waiting = block
                return
        for line in block.split(b"\n")[:-1]:
            self._take(line)

    def _take_pairs(self, block: bytes, lines: int) -> bool:
        run = self._run
        if run is None or run.executed.is_open or not self._due:
            return False
        pairs = executed_pairs(block, lines, self._due, self._origin)
        if pairs is None:
            return False
        run.executed.extend(*pairs)
        self._rank.last = max(self._rank.last, max(pairs.start), max(pairs.end))
        self._rank.failed = False
        self._taken += lines
        return True

    def _take(self, line: bytes) -> None:
        self._taken += 1
        where = f"{self._rank.file_name}, line {self._taken}"
        try:
            data = self._upgraded(from_json(line))
            if not self._take_plan(data):
                wrong = self._take_event(EVENT.validate_python(data))
                if wrong is not None:
                    self.damage(f"{where}: {wrong}")
        except ValidationError as error:
            self.damage(f"{where}: no event: {explain(error)}")
        except ValueError as error:
            self.damage(f"{where}: not JSON: {error}")

    def _upgraded(self, data: Any) -> Any:
        """The start of an instruction in today's format, where it may be of the first."""
        if not self._first_format or not isinstance(data, dict) or data.get("event") != "start":
            return data
        instruction = data.get("instruction")
        if not isinstance(instruction, dict) or "stage" in instruction:
            return data
        upgraded = upgraded_instruction(instruction, self._rank.pipeline_rank)
        return {**data, "instruction": upgraded}

    def _take_plan(self, data: Any) -> bool:
        """Take a plan without making its instructions, if that is what `data` is."""
        plan = data.get("plan") if isinstance(data, dict) and data.get("event") == "plan" else None
        if not isinstance(plan, dict):
            return False
        self._first_format = plan.get("format") in FIRST_FORMATS
        program = program_columns(plan, first_format=self._first_format)
        if program is None:
            return False
        try:
            bare = {**data, "plan": {**plan, "steps": [], "epilogue": []}}
            event = PlanRecorded.model_validate(bare)
        except ValidationError:
            return False  # and have the model of all events say so
        self._happened(event)
        return self._keep_plan(event, program, list(chain.from_iterable(plan["steps"]))) is None

    def _keep_plan(
        self, event: PlanRecorded, program: ProgramColumns, instructions: list[dict[str, Any]]
    ) -> str | None:
        here, unit = self._rank.pipeline_rank, event.plan.unit
        if program.rank != here:
            return f"holds a plan of {unit} {program.rank}, needed one of {unit} {here}"
        self._plans[event.fingerprint] = RecordedPlan(event.plan, program)
        steps: list[int | None] = [*program.rows.step.tolist(), *[None] * len(program.epilogue)]
        instructions += [instruction.model_dump() for instruction in program.epilogue]
        self._planned[event.fingerprint] = list(zip(steps, instructions, strict=True))
        return None

    def _happened(self, event: RecordedEvent) -> int:
        """Note that something happened; the time at which it did."""
        rank, at = self._rank, self._origin + event.at
        rank.last = max(rank.last, at)
        rank.failed = isinstance(event, ErrorRaised) or (rank.failed and isinstance(event, Closed))
        return at

    def _take_event(self, event: RecordedEvent) -> str | None:
        """Add an event to the recording; what is wrong with it."""
        at = self._happened(event)
        match event:
            case PlanRecorded():
                return self._take_odd_plan(event)
            case RunStarted():
                plan = self._plans.get(event.fingerprint)
                executed = Executions(None if plan is None else plan.program)
                self._due = self._planned.get(event.fingerprint, [])
                self._run = RecordedRun(event.run, event.fingerprint, at, plan, executed)
                self._rank.runs.append(self._run)
            case InstructionStarted():
                return self._start(Placed(event.offset, event.step, event.instruction), at)
            case InstructionEnded():
                return self._end(event, at)
            case ErrorRaised():
                self._rank.errors.append((at, event))
                self._run = None
            case DataEnded():
                return self._end_of_data(event.micro_batches, at)
            case RunEnded():
                wrong = None
                if event.micro_batches is not None:
                    wrong = self._end_of_data(event.micro_batches, at)
                if self._run is not None:
                    self._run.end, self._run = at, None
                return wrong
            case Closed():
                self._rank.closed = True
        return None

    def _take_odd_plan(self, event: PlanRecorded) -> str | None:
        instructions = [placed.instruction for placed in event.plan.program.placed()]
        if not all(map(fits_columns, instructions)):
            return _TOO_LARGE
        own = [i.model_dump() for i in instructions[: -len(event.plan.epilogue) or None]]
        return self._keep_plan(event, ProgramColumns.of(event.plan), own)

    def _start(self, placed: Placed, at: int) -> str | None:
        run, wrong = self._run, None
        if run is None:
            return f"{placed.instruction} starts outside of a run"
        if not fits_columns(placed.instruction):
            return _TOO_LARGE
        executed = run.executed
        if executed.is_open:
            wrong = f"{placed.instruction} starts inside of {executed.placed(-1).instruction}"
            executed.leave(at)
        executed.enter(placed, at, planned=executed.has_planned(placed))
        return wrong

    def _end(self, event: InstructionEnded, at: int) -> str | None:
        executed = None if self._run is None else self._run.executed
        if executed is None or not executed.is_open or executed.last_offset != event.offset:
            return f"instruction {event.offset} ends, but did not start"
        executed.leave(at, NONE if event.bytes is None else event.bytes)
        return None

    def _end_of_data(self, micro_batches: int, at: int) -> str | None:
        run = self._run
        if run is None:
            return "the data ends outside of a run"
        if run.micro_batches is None:
            run.micro_batches, run.told = micro_batches, len(run.executed)
            run.data_ended = at
        elif run.micro_batches != micro_batches:
            return (
                f"the data ends after {micro_batches} micro-batches, and after "
                f"{run.micro_batches} before"
            )
        return None


def _count_often(block: bytes) -> int:
    """The lines that are starts and ends."""
    inside = sum(block.count(b"\n" + word) for word in _OFTEN)
    return inside + block.startswith(_OFTEN)
