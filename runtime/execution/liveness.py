"""Liveness: after which instruction nobody reads a value any more.

Read off what instructions declare, so that the interpreter can let go of a value as soon as the
plan allows: an input after its forward, an output after the wait for its last send.
"""

from collections.abc import Iterator

from schemas import BufferInstruction, Place, StagePlan, places


def last_reads(plan: StagePlan) -> list[tuple[Place, ...]]:
    """For each instruction of a plan: the places of its buffer that it is the last one to read.

    >>> from schedcc import compile_stage
    >>> plan = compile_stage(1, 2, 1, overlap=True)
    >>> [(str(placed.instruction), *last) for placed, last in zip(
    ...     plan.program.placed(), last_reads(plan)) if last]
    [('ForwardPass(micro_batch=0)', <Place.INPUT: 'input'>, <Place.LABEL: 'label'>)]
    """
    return list(_backwards(plan))[::-1]


def _backwards(plan: StagePlan) -> Iterator[tuple[Place, ...]]:
    awaited: set[tuple[int, Place]] = set()  # read further on, before they are written again
    for placed in reversed(list(plan.program.placed())):
        instruction = placed.instruction
        if not isinstance(instruction, BufferInstruction):
            yield ()
            continue
        effects, buffer = instruction.effects, instruction.buffer
        read = places(effects.reads, plan.stage_id, plan.stages)
        awaited -= {(buffer, place) for place in places(effects.writes, plan.stage_id, plan.stages)}
        yield tuple(place for place in read if (buffer, place) not in awaited)
        awaited |= {(buffer, place) for place in read}
