"""What an instruction does to the places of a buffer, stated as data.

A buffer has three places. A value lives in its place from its write to its last read::

    first stage      LoadMicroBatch ─┐                                ┌─ SendActivation
    other stages     RecvActivation ─┴─> input ──> ForwardPass ──> output
    last stage       LoadMicroBatch ───> label ──────┘   └─ losses, logits (results, no place)

Places belong to a stage: a rank that holds several has the buffers of each. Between neighbouring
stages of one rank, `CopyActivation` takes the place of `SendActivation` and `RecvActivation`.

A transfer that is split is in flight from its post to its wait; in between nobody may touch the
place. The checks read nothing but this, and so need not know which instruction they look at.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, assert_never


class Place(StrEnum):
    """One of the three places of a buffer."""

    INPUT = "input"
    LABEL = "label"
    OUTPUT = "output"


class BufferPlace(NamedTuple):
    """A place of one stage's buffer."""

    stage: int
    buffer: int
    place: Place


class Position(StrEnum):
    """Where along the pipeline a stage stands; a pipeline of one stage is first and last."""

    ANY = "any stage"
    FIRST = "the first stage"
    LAST = "the last stage"
    FIRST_OR_LAST = "the first or the last stage"
    NOT_FIRST = "any stage but the first"
    NOT_LAST = "any stage but the last"

    def includes(self, stage_id: int, stages: int) -> bool:
        """Whether stage `stage_id` of `stages` stands here."""
        first, last = stage_id == 0, stage_id == stages - 1
        match self:
            case Position.ANY:
                return True
            case Position.FIRST:
                return first
            case Position.LAST:
                return last
            case Position.FIRST_OR_LAST:
                return first or last
            case Position.NOT_FIRST:
                return not first
            case Position.NOT_LAST:
                return not last
            case _:
                assert_never(self)


@dataclass(frozen=True)
class Access:
    """A read or a write of one place, on the stages where it happens."""

    place: Place
    on: Position = Position.ANY
    of_peer: bool = False
    """Whether the place is the peer's, in the buffer `peer_buffer`, rather than the own stage's."""


INPUT = Access(Place.INPUT)
INPUT_ON_FIRST = Access(Place.INPUT, Position.FIRST)
LABEL_ON_LAST = Access(Place.LABEL, Position.LAST)
OUTPUT = Access(Place.OUTPUT)
OUTPUT_ON_LAST = Access(Place.OUTPUT, Position.LAST)
OUTPUT_OF_PEER = Access(Place.OUTPUT, of_peer=True)


class Phase(StrEnum):
    """Whether an instruction is a whole access or one end of a split one."""

    WHOLE = "whole"
    POST = "post"
    WAIT = "wait"


class Direction(StrEnum):
    """Which way a transfer goes, seen from the stage that executes it."""

    SEND = "send"
    RECV = "receive"


@dataclass(frozen=True)
class Effects:
    """What an instruction does to the places of its buffer, and in which phase of the access."""

    reads: tuple[Access, ...] = ()
    writes: tuple[Access, ...] = ()
    delivers: tuple[Access, ...] = ()
    """Writes whose value the instruction itself hands to the results: nobody needs to read it."""
    phase: Phase = Phase.WHOLE


def places(accesses: tuple[Access, ...], stage_id: int, stages: int) -> tuple[Place, ...]:
    """The places of its own that stage `stage_id` of `stages` touches by `accesses`."""
    return tuple(
        access.place
        for access in accesses
        if not access.of_peer and access.on.includes(stage_id, stages)
    )
