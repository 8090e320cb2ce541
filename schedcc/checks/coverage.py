"""`coverage`: is every micro-batch forwarded exactly once, in order, and its output handed on?"""

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

from schedcc.checks.question import ProgramQuestion, finding
from schedcc.table.codes import IS_COPY, IS_FORWARD, IS_SEND, IS_TRANSFER, Ints
from schedcc.table.ranges import gaps, in_words
from schedcc.table.table import PlanTable
from schemas import (
    BufferInstruction,
    Finding,
    FindingCode,
    Phase,
    Place,
    Placed,
    PlanHeader,
    Position,
    RankProgram,
)


def coverage_holds(table: PlanTable) -> bool:
    """Is every micro-batch forwarded once by each stage, in order, and its output sent once?"""
    rows = table.rows
    forwards = IS_FORWARD[rows.op]
    handed_on = (IS_TRANSFER & IS_SEND)[rows.op] | IS_COPY[rows.op]
    source = np.where(IS_COPY[rows.op], rows.peer, rows.stage)[handed_on]
    micro_batch = rows.micro_batch[handed_on]
    held = _stages_held(table)
    in_order = np.argsort(rows.stage[forwards], kind="stable")
    return _each_once(
        table, held, rows.stage[forwards][in_order], rows.micro_batch[forwards][in_order]
    ) and _each_once(
        table,
        held[held != table.stages - 1],
        *(column[np.lexsort((micro_batch, source))] for column in (source, micro_batch)),
    )


def _stages_held(table: PlanTable) -> Ints:
    """The stages of the table's ranks, in order."""
    if len(table.placement) == 0:
        return np.sort(table.rank_ids)
    return np.flatnonzero(np.isin(table.placement, table.rank_ids))


def _each_once(table: PlanTable, stages: Ints, stage: Ints, micro_batch: Ints) -> bool:
    """Whether the given stages have all micro-batches in order, and no other stage has any."""
    if len(stage) != len(stages) * table.micro_batches:
        return False  # before anything is made whose size the header alone says
    expected = np.tile(np.arange(table.micro_batches), len(stages))
    same_stages = stage == np.repeat(stages, table.micro_batches)
    return bool(same_stages.all()) and bool((micro_batch == expected).all())


def check_coverage(header: PlanHeader, program: RankProgram) -> Iterator[Finding]:
    """Is each of the M micro-batches forwarded once by each stage, in order, and sent on once?"""
    forwards: defaultdict[int, list[tuple[int, Placed]]] = defaultdict(list)
    sent: Counter[tuple[int, int]] = Counter()
    for placed in program.placed():
        instruction = placed.instruction
        if not isinstance(instruction, BufferInstruction):
            continue
        effects, micro_batch = instruction.effects, instruction.micro_batch
        for written in instruction.touches(effects.writes, header.stages):
            if written.place is Place.OUTPUT:
                forwards[written.stage].append((micro_batch, placed))
        for read in instruction.touches(effects.reads, header.stages):
            if read.place is Place.OUTPUT and effects.phase is not Phase.WAIT:
                sent[read.stage, micro_batch] += 1
    held = set(header.stages_of(program.rank))
    for stage_id in sorted(held | forwards.keys()):
        yield from _of_stage(header, program.rank, stage_id, forwards.get(stage_id, []), sent)


def _of_stage(
    header: PlanHeader,
    rank: int,
    stage_id: int,
    forwards: list[tuple[int, Placed]],
    sent: Counter[tuple[int, int]],
) -> Iterator[Finding]:
    if missing := gaps((m for m, _ in forwards), header.micro_batches):
        message = f"{in_words('micro-batch', missing)} never forwarded"
        yield _finding(header, rank, stage_id, None, message)
    seen: set[int] = set()
    highest = -1
    for micro_batch, placed in forwards:
        if micro_batch in seen:
            message = f"micro-batch {micro_batch} forwarded again, needed once"
            yield _finding(header, rank, stage_id, placed.step, message)
        elif micro_batch < highest:
            message = f"micro-batch {micro_batch} forwarded after micro-batch {highest}"
            yield _finding(header, rank, stage_id, placed.step, message)
        seen.add(micro_batch)
        highest = max(highest, micro_batch)

    if Position.NOT_LAST.includes(stage_id, header.stages):
        for micro_batch in sorted(seen):
            count = sent[stage_id, micro_batch]
            if count != 1:
                times = f"sent {count} times" if count else "never sent"
                message = f"output of micro-batch {micro_batch} {times}, needed once"
                yield _finding(header, rank, stage_id, None, message)


def _finding(
    header: PlanHeader, rank: int, stage_id: int, step: int | None, message: str
) -> Finding:
    return finding(FindingCode.COVERAGE, header, rank, message, stage_id=stage_id, step=step)


COVERAGE = ProgramQuestion("coverage", holds=coverage_holds, explain=check_coverage)
