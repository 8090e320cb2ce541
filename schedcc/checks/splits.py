"""`channel`, on one rank: does every posted transfer have its wait, and every wait its post?"""

from collections.abc import Iterator

import numpy as np

from schedcc.checks.question import ProgramQuestion, finding
from schedcc.table.codes import IS_POST, IS_SEND, IS_WAIT
from schedcc.table.table import PlanTable
from schemas import (
    Finding,
    FindingCode,
    Phase,
    Placed,
    PlanHeader,
    RankProgram,
    TransferInstruction,
)


def splits_hold(table: PlanTable) -> bool:
    """Are the posts and waits of each transfer a post, its wait, a post, its wait, and so on?"""
    rows = table.rows
    split = np.flatnonzero(IS_POST[rows.op] | IS_WAIT[rows.op])
    sends = IS_SEND[rows.op]
    key = (rows.peer, rows.buffer, sends, rows.micro_batch, rows.stage, table.program)
    order = split[np.lexsort([column[split] for column in key])]
    post, wait = order[0::2], order[1::2]
    if len(post) != len(wait):
        return False
    in_turn = IS_POST[rows.op[post]].all() and IS_WAIT[rows.op[wait]].all()
    return bool(in_turn) and all(bool((c[post] == c[wait]).all()) for c in key)


def check_splits(header: PlanHeader, program: RankProgram) -> Iterator[Finding]:
    """Do posts and waits alternate for each stage, micro-batch, buffer, peer and direction?"""
    open_posts: dict[tuple[str, int, int, int, int], Placed] = {}
    for placed in program.placed():
        instruction = placed.instruction
        if not isinstance(instruction, TransferInstruction):
            continue
        transfer = (
            instruction.direction,
            instruction.stage,
            instruction.micro_batch,
            instruction.buffer,
            instruction.peer,
        )
        if instruction.effects.phase is Phase.POST:
            if transfer in open_posts:
                yield _finding(header, program, open_posts[transfer], "is never waited for")
            open_posts[transfer] = placed
        elif instruction.effects.phase is Phase.WAIT and not open_posts.pop(transfer, None):
            yield _finding(header, program, placed, "waits for a transfer that was not posted")
    for placed in open_posts.values():
        yield _finding(header, program, placed, "is never waited for")


def _finding(header: PlanHeader, program: RankProgram, placed: Placed, complaint: str) -> Finding:
    assert isinstance(placed.instruction, TransferInstruction)
    return finding(
        FindingCode.CHANNEL,
        header,
        program.rank,
        f"{placed.instruction!r} {complaint}",
        stage_id=placed.instruction.stage,
        step=placed.step,
    )


SPLITS = ProgramQuestion("splits", holds=splits_hold, explain=check_splits)
