"""`buffer`: does every instruction find its micro-batch in its place, and disturb no other?"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, auto
from typing import Any

import numpy as np

from schedcc.checks.question import ProgramQuestion
from schedcc.table.positions import by_position, positions
from schedcc.table.table import Ints, PlanTable
from schemas import (
    BufferInstruction,
    Finding,
    FindingCode,
    Phase,
    Place,
    Placed,
    PlanHeader,
    StageProgram,
    places,
)


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
    place: by_position(lambda op, *where, place=place: _kind(op, place, *where)) for place in Place
}


def buffers_hold(table: PlanTable) -> bool:
    """Does every place hold what is read there, until it is read, and is no place in flight?

    The life of a place is a word over `_Kind`, and whether it is a good one can be told from each
    two neighbours. This covers posts and their waits as well.
    """
    where = positions(table)
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


@dataclass
class _Content:
    """What a place holds while the program runs."""

    micro_batch: int | None = None
    unread: bool = False
    in_flight: Placed | None = None


def check_buffers(header: PlanHeader, program: StageProgram) -> Iterator[Finding]:
    """Is every value read where it was written, before it is overwritten, and never in flight?

    One walk along the program, following each place through the effects that the instructions
    declare. A value that is overwritten, or left at the end, before anything has read it is lost.
    """
    contents: defaultdict[tuple[int, Place], _Content] = defaultdict(_Content)
    for placed in program.placed():
        instruction = placed.instruction
        if not isinstance(instruction, BufferInstruction):
            continue
        for place, message in _walk(header, program.stage_id, contents, placed, instruction):
            name = f"{place} of buffer {instruction.buffer}"
            yield Finding(
                code=FindingCode.BUFFER,
                stage_id=program.stage_id,
                step=placed.step,
                message=f"{instruction} {message.format(name)}",
            )
    for (buffer, place), content in contents.items():
        if content.unread:
            yield Finding(
                code=FindingCode.BUFFER,
                stage_id=program.stage_id,
                message=f"the {place} of buffer {buffer} still holds micro-batch "
                f"{content.micro_batch} at the end, which nothing has read",
            )


def _walk(
    header: PlanHeader,
    stage_id: int,
    contents: defaultdict[tuple[int, Place], _Content],
    placed: Placed,
    instruction: BufferInstruction,
) -> Iterator[tuple[Place, str]]:
    effects, micro_batch = instruction.effects, instruction.micro_batch
    waits = effects.phase is Phase.WAIT
    for place in places(effects.reads, stage_id, header.stages):
        content = contents[instruction.buffer, place]
        if waits:
            content.in_flight = None
            continue
        if content.in_flight is not None:
            yield place, f"reads the {{}}, in flight since {_since(content.in_flight)}"
        elif content.micro_batch != micro_batch:
            found = "nothing" if content.micro_batch is None else f"m={content.micro_batch}"
            yield place, f"reads the {{}}, which holds {found}, needed m={micro_batch}"
        content.unread = False
        if effects.phase is Phase.POST:
            content.in_flight = placed

    delivered = places(effects.delivers, stage_id, header.stages)
    for place in places(effects.writes, stage_id, header.stages):
        content = contents[instruction.buffer, place]
        if waits:
            content.in_flight = None
            content.unread = True
            continue
        if content.in_flight is not None:
            yield place, f"writes the {{}}, in flight since {_since(content.in_flight)}"
        elif content.unread:
            yield place, f"writes over the {{}}, where nothing has read m={content.micro_batch} yet"
        content.micro_batch = micro_batch
        content.unread = place not in delivered and effects.phase is Phase.WHOLE
        content.in_flight = placed if effects.phase is Phase.POST else None


def _since(placed: Placed) -> str:
    return f"{placed.where}: {placed.instruction}"


BUFFERS = ProgramQuestion("buffers", holds=buffers_hold, explain=check_buffers)
