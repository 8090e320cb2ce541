"""Screens: does a table of programs hold nothing that the checks would find?

Each answers for a whole table what a check with the same name answers for one program or channel,
with arrays and without words. A table that passes needs no explanation; one that does not is for
the checks in `schedcc.checks`, which list every finding.
"""

from collections.abc import Callable
from enum import IntEnum, auto
from typing import Any

import numpy as np

from schedcc.channels import collectives
from schedcc.table import (
    IS_BUFFER,
    IS_FORWARD,
    IS_GROUP_END,
    IS_GROUP_START,
    IS_PAIRED,
    IS_POST,
    IS_SEND,
    IS_TRANSFER,
    OPS,
    Bools,
    Ints,
    PlanTable,
)
from schemas import Phase, Place, places

Screen = Callable[[PlanTable], bool]


def _by_position(question: Callable[[Any, int, int], bool]) -> Bools:
    """`[code, where]`: the answer to a question about a class of instructions on a stage."""
    return np.array([[question(op, *where) for where in _WHERE] for op in OPS])


_WHERE = ((1, 3), (0, 2), (1, 2), (0, 1))
"""A middle, a first, a last, an only stage, as `(stage_id, stages)`; see `_where`."""

_BELONGS = _by_position(lambda op, stage_id, stages: op.position.includes(stage_id, stages))


def structure_holds(table: PlanTable) -> bool:
    """Are ids in range, peers neighbours, instructions where they belong, and groups closed?

    Epilogues are few, and left to their check.
    """
    rows, stages = table.rows, table.stages
    op, buffer_rows, paired = rows.op, IS_BUFFER[rows.op], IS_PAIRED[rows.op]
    neighbour = table.stage + np.where(IS_SEND[op], 1, -1)
    bracket = IS_GROUP_START[op].astype(np.int64) - IS_GROUP_END[op]
    depth = np.cumsum(bracket)
    inside = depth - bracket > 0
    new_step = ~(table.follows & (rows.step == np.roll(rows.step, 1)))
    return (
        bool(((table.stage_ids >= 0) & (table.stage_ids < stages)).all())
        and bool(_BELONGS[op, _where(table)].all())
        and _in_range(rows.micro_batch[buffer_rows], table.micro_batches)
        and _in_range(rows.buffer[buffer_rows], table.num_buffers)
        and _in_range(rows.peer[paired], stages)
        and bool((rows.peer[paired] == neighbour[paired]).all())
        and _in_range(depth, 2)
        and not inside[new_step].any()
        and bool((~inside | IS_POST[op] | IS_GROUP_END[op]).all())
        and int(depth[-1:].sum()) == 0
    )


def coverage_holds(table: PlanTable) -> bool:
    """Is every micro-batch forwarded once, in order, and its output sent once?"""
    rows = table.rows
    forwards = IS_FORWARD[rows.op]
    outputs = IS_TRANSFER[rows.op] & IS_SEND[rows.op]
    order = np.lexsort((rows.micro_batch[outputs], table.program[outputs]))
    every = np.arange(len(table.stage_ids))
    return _each_once(
        table, every, table.program[forwards], rows.micro_batch[forwards]
    ) and _each_once(
        table,
        every[table.stage_ids != table.stages - 1],
        table.program[outputs][order],
        rows.micro_batch[outputs][order],
    )


def _each_once(table: PlanTable, programs: Ints, program: Ints, micro_batch: Ints) -> bool:
    """Whether the given programs have all micro-batches in order, and no other program has any."""
    if len(program) != len(programs) * table.micro_batches:
        return False  # before anything is made whose size the header alone says
    expected = np.tile(np.arange(table.micro_batches), len(programs))
    same_programs = program == np.repeat(programs, table.micro_batches)
    return bool(same_programs.all()) and bool((micro_batch == expected).all())


class _Kind(IntEnum):
    """How an instruction touches a place."""

    NOT = 0
    READ = auto()
    POST_READ = auto()
    WAIT_READ = auto()
    WRITE = auto()
    POST_WRITE = auto()
    WAIT_WRITE = auto()
    DELIVER = auto()
    """A write whose value nobody has to read."""


_AFTER: dict[_Kind, tuple[_Kind, ...]] = {
    _Kind.READ: (_Kind.READ, _Kind.POST_READ, _Kind.WRITE, _Kind.POST_WRITE, _Kind.DELIVER),
    _Kind.POST_READ: (_Kind.WAIT_READ,),
    _Kind.WAIT_READ: (_Kind.READ, _Kind.POST_READ, _Kind.WRITE, _Kind.POST_WRITE, _Kind.DELIVER),
    _Kind.WRITE: (_Kind.READ, _Kind.POST_READ),
    _Kind.POST_WRITE: (_Kind.WAIT_WRITE,),
    _Kind.WAIT_WRITE: (_Kind.READ, _Kind.POST_READ),
    _Kind.DELIVER: (_Kind.READ, _Kind.POST_READ, _Kind.WRITE, _Kind.POST_WRITE, _Kind.DELIVER),
}
"""What may touch a place next."""

_MAY_FOLLOW = np.zeros((len(_Kind), len(_Kind)), dtype=bool)
for _first, _seconds in _AFTER.items():
    _MAY_FOLLOW[_first, list(_seconds)] = True
_MAY_BEGIN = np.isin(list(_Kind), [_Kind.WRITE, _Kind.POST_WRITE, _Kind.DELIVER])
_MAY_END = np.isin(list(_Kind), [_Kind.READ, _Kind.WAIT_READ, _Kind.DELIVER])
_KEEPS_MICRO_BATCH = ~np.isin(list(_Kind), [_Kind.WRITE, _Kind.POST_WRITE, _Kind.DELIVER])
_IS_WAIT = np.isin(list(_Kind), [_Kind.WAIT_READ, _Kind.WAIT_WRITE])


def _kind(op: Any, place: Place, stage_id: int, stages: int) -> _Kind:
    effects = getattr(op, "effects", None)
    if effects is None:
        return _Kind.NOT
    where = (stage_id, stages)
    if place in places(effects.writes, *where):
        if place in places(effects.delivers, *where):
            return _Kind.DELIVER
        return {
            Phase.WHOLE: _Kind.WRITE,
            Phase.POST: _Kind.POST_WRITE,
            Phase.WAIT: _Kind.WAIT_WRITE,
        }[effects.phase]
    if place in places(effects.reads, *where):
        return {
            Phase.WHOLE: _Kind.READ,
            Phase.POST: _Kind.POST_READ,
            Phase.WAIT: _Kind.WAIT_READ,
        }[effects.phase]
    return _Kind.NOT


_KINDS = {
    place: np.array([[_kind(op, place, *where) for where in _WHERE] for op in OPS])
    for place in Place
}


def buffers_hold(table: PlanTable) -> bool:
    """Does every place hold what is read there, until it is read, and is no place in flight?

    The life of a place is a word over `_Kind`, and whether it is a good one can be told from each
    two neighbours. This covers posts and their waits as well.
    """
    where = _where(table)
    return all(_lives_hold(table, kinds[table.rows.op, where]) for kinds in _KINDS.values())


def _lives_hold(table: PlanTable, kind: Ints) -> bool:
    """Whether the lives of one place in all buffers of all programs are good."""
    touching = np.flatnonzero(kind)
    if len(touching) == 0:
        return True
    program, buffer = table.program[touching], table.rows.buffer[touching]
    if int(buffer.max()) < 2**8 and len(table.stage_ids) < 2**8:
        key = (program * 2**8 + buffer).astype(np.uint16)  # numpy sorts these by radix
        order = touching[np.argsort(key, kind="stable")]
    else:
        order = touching[np.lexsort((buffer, program))]
    before, after = order[:-1], order[1:]
    same = table.program[before] == table.program[after]
    same &= table.rows.buffer[before] == table.rows.buffer[after]
    same_value = table.rows.micro_batch[before] == table.rows.micro_batch[after]
    same_peer = table.rows.peer[before] == table.rows.peer[after]
    good = _MAY_FOLLOW[kind[before], kind[after]]
    good &= same_value | ~_KEEPS_MICRO_BATCH[kind[after]]
    good &= same_peer | ~_IS_WAIT[kind[after]]
    begins = np.concatenate(([True], ~same))
    ends = np.concatenate((~same, [True]))
    return (
        bool((good | ~same).all())
        and bool(_MAY_BEGIN[kind[order[begins]]].all())
        and bool(_MAY_END[kind[order[ends]]].all())
    )


def channels_hold(table: PlanTable) -> bool:
    """Do the k-th send and the k-th receive of every channel name the same micro-batch?

    Of channels that lead to stages outside of the table, only one end is here: they are left out.
    """
    send, receive, _ = table.matched
    micro_batch = table.rows.micro_batch
    return 2 * len(send) == len(table.inner_transfers) and bool(
        (micro_batch[send] == micro_batch[receive]).all()
    )


def collectives_hold(table: PlanTable) -> bool:
    """Do all stages enter their collectives in one order, which is common to all of them?

    So they neither miss each other nor wait in a circle. Of those with members outside of the
    table, only what is here is compared.
    """
    entered = [collectives(epilogue) for epilogue in table.epilogues]
    order = max(entered, key=len, default=[])
    return all(
        own == [i for i in order if stage_id in i.members(table.stages)]
        for stage_id, own in zip(table.stage_ids.tolist(), entered, strict=True)
    )


PROGRAM_SCREENS: tuple[Screen, ...] = (structure_holds, coverage_holds, buffers_hold)
PIPELINE_SCREENS: tuple[Screen, ...] = (channels_hold, collectives_hold)


def _where(table: PlanTable) -> Ints:
    """`[rows]`: where the stage of a row stands, an index into `_WHERE`."""
    first, last = table.stage == 0, table.stage == table.stages - 1
    where: Ints = first.astype(np.int64) + 2 * last
    return where


def _in_range(values: Ints, count: int) -> bool:
    return bool(((values >= 0) & (values < count)).all())
