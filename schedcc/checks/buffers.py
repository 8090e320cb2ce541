"""`buffer`: does every instruction find its micro-batch in its place, and disturb no other?"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, auto
from typing import Any, NamedTuple

import numpy as np

from schedcc.checks.question import ProgramQuestion, finding
from schedcc.table.codes import Ints
from schedcc.table.positions import by_position, positions
from schedcc.table.table import PlanTable
from schemas import (
    Access,
    BufferInstruction,
    BufferPlace,
    Finding,
    FindingCode,
    Phase,
    Place,
    Placed,
    PlanHeader,
    RankProgram,
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


def _kind(op: Any, place: Place, stage_id: int, stages: int, *, of_peer: bool = False) -> _Kind:
    """How an instruction touches a place, of its own stage or of its peer's."""
    effects = getattr(op, "effects", None)
    if effects is None:
        return _Kind.NOT

    def among(accesses: tuple[Access, ...]) -> bool:
        return any(
            a.place is place and a.of_peer is of_peer and a.on.includes(stage_id, stages)
            for a in accesses
        )

    if among(effects.writes):
        if among(effects.delivers):
            return _Kind.DELIVER
        return {
            Phase.WHOLE: _Kind.WRITE,
            Phase.POST: _Kind.POST_WRITE,
            Phase.WAIT: _Kind.WAIT_WRITE,
        }[effects.phase]
    if among(effects.reads):
        return {
            Phase.WHOLE: _Kind.READ,
            Phase.POST: _Kind.POST_READ,
            Phase.WAIT: _Kind.WAIT_READ,
        }[effects.phase]
    return _Kind.NOT


_KINDS = {
    place: by_position(lambda op, *where, place=place: _kind(op, place, *where)) for place in Place
}
_KINDS_OF_PEER = {
    place: by_position(lambda op, *where, place=place: _kind(op, place, *where, of_peer=True))
    for place in Place
}


def buffers_hold(table: PlanTable) -> bool:
    """Does every place hold what is read there, until it is read, and is no place in flight?

    The life of a place is a word over `_Kind`, and whether it is a good one can be told from each
    two neighbours. This covers posts and their waits as well.
    """
    where = positions(table)
    return all(
        _lives_hold(
            table,
            _Touches.of(
                table, kinds[table.rows.op, where], _KINDS_OF_PEER[place][table.rows.op, where]
            ),
        )
        for place, kinds in _KINDS.items()
    )


class _Touches(NamedTuple):
    """What touches one place of all buffers: in no order, but that of each program."""

    row: Ints
    kind: Ints
    stage: Ints
    buffer: Ints

    @classmethod
    def of(cls, table: PlanTable, own: Ints, of_peer: Ints) -> "_Touches":
        """The touches of instructions in their own stage's buffers, and in their peer's."""
        rows = table.rows
        here, there = np.flatnonzero(own), np.flatnonzero(of_peer)
        found = cls(here, own[here], rows.stage[here], rows.buffer[here])
        if len(there) == 0:
            return found
        others = (there, of_peer[there], rows.peer[there], rows.peer_buffer[there])
        row, *columns = (np.concatenate(pair) for pair in zip(found, others, strict=True))
        order = np.argsort(row, kind="stable")
        return cls(row[order], *(column[order] for column in columns))


def _lives_hold(table: PlanTable, touches: _Touches) -> bool:
    """Whether the lives of one place in all buffers of all stages are good.

    A stage's buffers are touched by the programs of one rank only, which `structure` sees to.
    """
    if len(touches.row) == 0:
        return True
    stage, buffer = touches.stage, touches.buffer
    if int(min(buffer.min(), stage.min())) >= 0 and max(int(buffer.max()), int(stage.max())) < 2**8:
        key = (stage * 2**8 + buffer).astype(np.uint16)  # numpy sorts these by radix
        order = np.argsort(key, kind="stable")
    else:
        order = np.lexsort((buffer, stage))
    row, kind, stage, buffer = (column[order] for column in touches)
    before, after = row[:-1], row[1:]
    same = (stage[:-1] == stage[1:]) & (buffer[:-1] == buffer[1:])
    same_value = table.rows.micro_batch[before] == table.rows.micro_batch[after]
    same_peer = table.rows.peer[before] == table.rows.peer[after]
    good = _MAY_FOLLOW[kind[:-1], kind[1:]]
    good &= same_value | ~_KEEPS_MICRO_BATCH[kind[1:]]
    good &= same_peer | ~_IS_WAIT[kind[1:]]
    begins = np.concatenate(([True], ~same))
    ends = np.concatenate((~same, [True]))
    return (
        bool((good | ~same).all())
        and bool(_MAY_BEGIN[kind[begins]].all())
        and bool(_MAY_END[kind[ends]].all())
    )


@dataclass
class _Content:
    """What a place holds while the program runs."""

    micro_batch: int | None = None
    unread: bool = False
    in_flight: Placed | None = None


def check_buffers(header: PlanHeader, program: RankProgram) -> Iterator[Finding]:
    """Is every value read where it was written, before it is overwritten, and never in flight?

    One walk along the program, following each place through the effects that the instructions
    declare. A value that is overwritten, or left at the end, before anything has read it is lost.
    """
    contents: defaultdict[BufferPlace, _Content] = defaultdict(_Content)
    for placed in program.placed():
        instruction = placed.instruction
        if not isinstance(instruction, BufferInstruction):
            continue
        for touched, message in _walk(header, contents, placed, instruction):
            yield finding(
                FindingCode.BUFFER,
                header,
                program.rank,
                f"{instruction} {message.format(_name(header, program.rank, touched))}",
                stage_id=instruction.stage,
                step=placed.step,
            )
    for touched, content in contents.items():
        if content.unread:
            yield finding(
                FindingCode.BUFFER,
                header,
                program.rank,
                f"the {_name(header, program.rank, touched)} still holds micro-batch "
                f"{content.micro_batch} at the end, which nothing has read",
                stage_id=touched.stage,
            )


def _name(header: PlanHeader, rank: int, touched: BufferPlace) -> str:
    own = header.is_one_to_one and touched.stage == rank
    of_stage = "" if own else f" of stage {touched.stage}"
    return f"{touched.place} of buffer {touched.buffer}{of_stage}"


def _walk(
    header: PlanHeader,
    contents: defaultdict[BufferPlace, _Content],
    placed: Placed,
    instruction: BufferInstruction,
) -> Iterator[tuple[BufferPlace, str]]:
    effects, micro_batch = instruction.effects, instruction.micro_batch
    waits = effects.phase is Phase.WAIT
    for place in instruction.touches(effects.reads, header.stages):
        content = contents[place]
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

    delivered = instruction.touches(effects.delivers, header.stages)
    for place in instruction.touches(effects.writes, header.stages):
        content = contents[place]
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
