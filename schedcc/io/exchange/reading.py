"""Import: a CSV file of `torch.distributed.pipelining` as a plan, to be checked and drawn."""

import csv
from collections.abc import Iterable
from io import StringIO
from pathlib import Path
from typing import Literal

from schedcc.errors import PlanFileError, require_count
from schedcc.io.bounded import read_bounded, shown
from schedcc.io.exchange.actions import FORWARD_KINDS, TRANSFERS, Action, Cell, Kind, parse_cell
from schedcc.io.exchange.buffers import with_buffers
from schedcc.io.exchange.lowering import with_transfers
from schemas import (
    ForwardPass,
    LoadMicroBatch,
    PipelinePlan,
    PostRecvActivation,
    PostSendActivation,
    StageProgram,
    StepInstruction,
    WaitRecvActivation,
    WaitSendActivation,
)

Format = Literal["compute_only", "compute_comms"]
"""Torch's names: a file without transfers, which torch adds itself, or with them."""

MOST_STAGES = 1024
"""Rows of a file: a plan is drawn with a column for each, so its size grows with their square."""


def read_torch_csv(
    path: Path, *, micro_batches: int | None = None, form: Format | None = None
) -> PipelinePlan:
    """Read a file of torch's, as `from_torch_csv` reads its text.

    Raises:
        PlanFileError: the file cannot be read, or holds no such schedule; the message is one line.
    """
    try:
        text = read_bounded(path).decode()
    except UnicodeDecodeError as error:
        raise PlanFileError(f"{shown(path)}: not UTF-8 text: {error.reason}") from error
    try:
        return from_torch_csv(text, micro_batches=micro_batches, form=form)
    except PlanFileError as error:
        raise PlanFileError(f"{shown(path)}: not a schedule: {error}") from error


def from_torch_csv(
    text: str, *, micro_batches: int | None = None, form: Format | None = None
) -> PipelinePlan:
    """What torch does under `eval` with a schedule in this file, as a plan.

    Forwards, and sends and receives of activations, in torch's split form: a receive is posted
    where the file says, and waited for by its forward; a send is posted where the file says, and
    waited for at the end of the batch. Backward, gradient and sharding actions are left out: under
    `eval` they do nothing. The plan is *not* checked: that is the point of reading it.

    Args:
        text: The file, one row for each rank, with one stage on each.
        micro_batches: M; default: as many as the forwards of the file name.
        form: Whether the file names its transfers; default: as one sees from it.

    Returns:
        A plan without an epilogue, with as many buffers as torch keeps alive.

    Raises:
        PlanFileError: the text is no such schedule; the message names row, cell, value and need.
        ScheduleError: `micro_batches` is no integer of at least 1.
    """
    rows = _stages(_rows(text))
    actions = [action for cells in rows.values() for cell in cells for action in cell.actions]
    if form is None:
        named = any(action.kind in TRANSFERS for action in actions)
        form = "compute_comms" if named else "compute_only"
    if form == "compute_only":
        _refuse_transfers(rows)
        lowered = with_transfers(rows)
    else:
        lowered = {s: [a for cell in cells for a in cell.actions] for s, cells in rows.items()}
    forwarded = [action.micro_batch for action in actions if action.kind is Kind.FORWARD]
    if not forwarded:
        raise PlanFileError(f"found {len(actions)} actions and no forward, needed one, such as 0F0")
    if micro_batches is None:
        micro_batches = max(forwarded) + 1
    programs = [with_buffers(_program(s, len(rows), lowered[s])) for s in range(len(rows))]
    return PipelinePlan(
        schedule="torch",
        micro_batches=require_count("micro_batches", micro_batches),
        stages=len(rows),
        num_buffers=max(count for _, count in programs),
        programs=tuple(program for program, _ in programs),
    )


def _rows(text: str) -> list[list[Cell]]:
    """The cells of each row that are not empty."""
    try:
        table = list(csv.reader(StringIO(text, newline="")))
    except csv.Error as error:
        raise PlanFileError(f"not CSV: {error}") from error
    if not 1 <= len(table) <= MOST_STAGES:
        raise PlanFileError(f"found {len(table)} rows, needed 1 to {MOST_STAGES}, one for a stage")
    return [
        [
            parse_cell(cell, f"row {row}, cell {number}")
            for number, cell in enumerate(cells, start=1)
            if cell.strip()
        ]
        for row, cells in enumerate(table, start=1)
    ]


def _stages(rows: list[list[Cell]]) -> dict[int, list[Cell]]:
    """The cells by stage, in the order of the rows."""
    stages: dict[int, list[Cell]] = {}
    for row, cells in enumerate(rows, start=1):
        found = sorted({action.stage_id for cell in cells for action in cell.actions})
        if not found:
            raise PlanFileError(f"row {row} is empty, needed the actions of one stage")
        if len(found) > 1:
            names = ", ".join(map(str, found[:8])) + (", ..." if len(found) > 8 else "")
            raise PlanFileError(
                f"row {row} has actions of the stages {names}, needed one stage on each rank "
                f"(interleaved schedules are not supported)"
            )
        if found[0] in stages:
            raise PlanFileError(f"row {row} is the second row of stage {found[0]}, needed one")
        if found[0] >= len(rows):
            raise PlanFileError(
                f"row {row} is of stage {found[0]}, needed the stages 0 to {len(rows) - 1} "
                f"(as many as rows)"
            )
        stages[found[0]] = cells
    return stages


def _refuse_transfers(rows: dict[int, list[Cell]]) -> None:
    for cells in rows.values():
        for cell in cells:
            for action in cell.actions:
                if action.kind in TRANSFERS:
                    raise PlanFileError(f"{cell.place} is {action}, needed only compute actions")


def _program(stage_id: int, stages: int, actions: Iterable[Action]) -> StageProgram:
    """The program of one stage, all in buffer 0. The k-th forward is in step `stage_id + k`."""
    steps: list[list[StepInstruction]] = [[] for _ in range(stage_id + 1)]
    forwarded = False  # in this step: then only sends still belong to it
    sent: list[int] = []
    posted: set[int] = set()
    for _, kind, m in actions:
        if kind not in FORWARD_KINDS:
            continue
        if forwarded and kind is not Kind.SEND:
            steps.append([])
            forwarded = False
        match kind:
            case Kind.RECEIVE:
                steps[-1].append(PostRecvActivation(micro_batch=m, buffer=0, peer=stage_id - 1))
                posted.add(m)
            case Kind.SEND:
                steps[-1].append(PostSendActivation(micro_batch=m, buffer=0, peer=stage_id + 1))
                sent.append(m)
            case Kind.FORWARD:
                if stage_id in (0, stages - 1):
                    steps[-1].append(LoadMicroBatch(micro_batch=m, buffer=0))
                if m in posted:
                    posted.discard(m)
                    steps[-1].append(WaitRecvActivation(micro_batch=m, buffer=0, peer=stage_id - 1))
                steps[-1].append(ForwardPass(micro_batch=m, buffer=0))
                forwarded = True
    steps[-1] += [  # in torch's order: the latest first
        WaitSendActivation(micro_batch=m, buffer=0, peer=stage_id + 1) for m in reversed(sent)
    ]
    return StageProgram(stage_id=stage_id, steps=tuple(map(tuple, steps)))
