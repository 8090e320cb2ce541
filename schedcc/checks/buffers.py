"""`buffer`: does every instruction find its micro-batch in its place, and disturb no other?"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

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
