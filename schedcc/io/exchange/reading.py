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
    CopyActivation,
    ForwardPass,
    LoadMicroBatch,
    PipelinePlan,
    PostRecvActivation,
    PostSendActivation,
    RankProgram,
    StepInstruction,
    WaitRecvActivation,
    WaitSendActivation,
)

Format = Literal["compute_only", "compute_comms"]
"""Torch's names: a file without transfers, which torch adds itself, or with them."""

MOST_RANKS = 1024
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
        text: The file, one row for each rank; a stage is on the rank in whose row it is named.
        micro_batches: M; default: as many as the forwards of the file name.
        form: Whether the file names its transfers; default: as one sees from it.

    Returns:
        A plan without an epilogue, with as many buffers as torch keeps alive.

    Raises:
        PlanFileError: the text is no such schedule; the message names row, cell, value and need.
        ScheduleError: `micro_batches` is no integer of at least 1.
    """
    rows = _ranks(_rows(text))
    placement = _placement(rows)
    actions = [action for cells in rows.values() for cell in cells for action in cell.actions]
    if form is None:
        named = any(action.kind in TRANSFERS for action in actions)
        form = "compute_comms" if named else "compute_only"
    if form == "compute_only":
        _refuse_transfers(rows)
        lowered = with_transfers(rows, placement)
    else:
        lowered = {r: [a for cell in cells for a in cell.actions] for r, cells in rows.items()}
    forwarded = [action.micro_batch for action in actions if action.kind is Kind.FORWARD]
    if not forwarded:
        raise PlanFileError(f"found {len(actions)} actions and no forward, needed one, such as 0F0")
    if micro_batches is None:
        micro_batches = max(forwarded) + 1
    programs = [with_buffers(_program(r, placement, lowered[r])) for r in rows]
    return PipelinePlan(
        schedule="torch",
        micro_batches=require_count("micro_batches", micro_batches),
        stages=len(placement),
        ranks=len(rows),
        placement=placement,
        num_buffers=max(count for _, count in programs),
        programs=tuple(program for program, _ in programs),
    )


def _rows(text: str) -> list[list[Cell]]:
    """The cells of each row that are not empty."""
    try:
        table = list(csv.reader(StringIO(text, newline="")))
    except csv.Error as error:
        raise PlanFileError(f"not CSV: {error}") from error
    if not 1 <= len(table) <= MOST_RANKS:
        raise PlanFileError(f"found {len(table)} rows, needed 1 to {MOST_RANKS}, one for a rank")
    return [
        [
            parse_cell(cell, f"row {row}, cell {number}")
            for number, cell in enumerate(cells, start=1)
            if cell.strip()
        ]
        for row, cells in enumerate(table, start=1)
    ]


def _ranks(rows: list[list[Cell]]) -> dict[int, list[Cell]]:
    """The cells of each rank: a row is one, but where each is of one stage, in their order."""
    stages = [sorted({a.stage_id for cell in cells for a in cell.actions}) for cells in rows]
    in_order = range(len(rows))
    if sorted(stages) == [[rank] for rank in in_order]:
        return {rank: rows[stages.index([rank])] for rank in in_order}
    return dict(enumerate(rows))


def _placement(rows: dict[int, list[Cell]]) -> tuple[int, ...]:
    """The rank of each stage: that of the row which names it."""
    ranks: dict[int, int] = {}
    for rank, cells in rows.items():
        found = sorted({action.stage_id for cell in cells for action in cell.actions})
        if not found:
            raise PlanFileError(f"row {rank + 1} is empty, needed the actions of its stages")
        for stage_id in found:
            if stage_id in ranks:
                raise PlanFileError(
                    f"row {rank + 1} is the second row of stage {stage_id}, needed one"
                )
            ranks[stage_id] = rank
    for stage_id, rank in ranks.items():
        if stage_id >= len(ranks):
            raise PlanFileError(
                f"row {rank + 1} is of stage {stage_id}, needed the stages 0 to {len(ranks) - 1} "
                f"(as many as are named)"
            )
    return tuple(ranks[stage_id] for stage_id in range(len(ranks)))


def _refuse_transfers(rows: dict[int, list[Cell]]) -> None:
    for cells in rows.values():
        for cell in cells:
            for action in cell.actions:
                if action.kind in TRANSFERS:
                    raise PlanFileError(f"{cell.place} is {action}, needed only compute actions")


def _program(rank: int, placement: tuple[int, ...], actions: Iterable[Action]) -> RankProgram:
    """The program of one rank, all in buffer 0; its first step is that of its first stage."""
    last = len(placement) - 1
    steps: list[list[StepInstruction]] = [[] for _ in range(placement.index(rank) + 1)]
    forwarded = False  # in this step: then only sends still belong to it
    sent: list[dict[str, int]] = []
    posted: set[tuple[int, int]] = set()
    for stage, kind, m in actions:
        if kind not in FORWARD_KINDS:
            continue
        if forwarded and kind is not Kind.SEND:
            steps.append([])
            forwarded = False
        fields = {"stage": stage, "micro_batch": m, "buffer": 0}
        match kind:
            case Kind.RECEIVE:
                steps[-1].append(PostRecvActivation(**fields, peer=stage - 1))
                posted.add((stage, m))
            case Kind.SEND:
                steps[-1].append(PostSendActivation(**fields, peer=stage + 1))
                sent.append(fields)
            case Kind.FORWARD:
                if stage in (0, last):
                    steps[-1].append(LoadMicroBatch(**fields))
                if stage > 0 and placement[stage - 1] == rank:
                    steps[-1].append(CopyActivation(**fields, peer=stage - 1, peer_buffer=0))
                if (stage, m) in posted:
                    posted.discard((stage, m))
                    steps[-1].append(WaitRecvActivation(**fields, peer=stage - 1))
                steps[-1].append(ForwardPass(**fields))
                forwarded = True
    steps[-1] += [  # in torch's order: the latest first
        WaitSendActivation(**fields, peer=fields["stage"] + 1) for fields in reversed(sent)
    ]
    return RankProgram(rank=rank, steps=tuple(map(tuple, steps)))
