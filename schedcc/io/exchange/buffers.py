"""Buffers for a program that names none: as many as its values need at once."""

from heapq import heappop, heappush

from schemas import BufferInstruction, CopyActivation, RankProgram, Step

_Buffers = dict[int, dict[int, int]]
"""Of each stage, the buffer of each micro-batch."""


def with_buffers(program: RankProgram) -> tuple[RankProgram, int]:
    """Give every micro-batch of a stage a buffer from its first to its last instruction there.

    Micro-batches that are alive at the same time get different buffers, and no program can do with
    fewer whole buffers (a colouring of intervals, in their order). Whatever is wrong with a program
    stays wrong, and nothing new is: no two micro-batches are in one buffer at once.

    >>> from schedcc import compile_stage
    >>> from schedcc.io.picture import cell
    >>> program = compile_stage(3, 2, 1).program
    >>> [cell(step).plain for step in program.steps]
    ['', 'L0 R0 F0', 'L1 R1 F1', 'L2 R2 F2']
    >>> with_buffers(program)[1]
    1

    Returns:
        The program, and the number of buffers of the stage that has most.
    """
    lives: dict[int, dict[int, list[int]]] = {}
    for placed in program.placed():
        instruction = placed.instruction
        if not isinstance(instruction, BufferInstruction):
            continue
        touched = [instruction.stage]
        if isinstance(instruction, CopyActivation):
            touched.append(instruction.peer)
        for stage in touched:
            of_stage = lives.setdefault(stage, {})
            of_stage.setdefault(instruction.micro_batch, [placed.offset, 0])[1] = placed.offset
    buffers = {stage: _coloured(of_stage) for stage, of_stage in lives.items()}
    counts = [max(of_stage.values()) + 1 for of_stage in buffers.values()]
    steps = tuple(_with_buffers(step, buffers) for step in program.steps)
    return program.model_copy(update={"steps": steps}), max(counts, default=1)


def _coloured(lives: dict[int, list[int]]) -> dict[int, int]:
    """A number for each interval, in the order of their beginnings; the lowest that is free."""
    colours: dict[int, int] = {}
    free: list[int] = []
    ends: list[tuple[int, int]] = []
    count = 0
    for micro_batch, (first, last) in lives.items():
        while ends and ends[0][0] < first:
            heappush(free, heappop(ends)[1])
        if not free:
            heappush(free, count)
            count += 1
        colours[micro_batch] = heappop(free)
        heappush(ends, (last, colours[micro_batch]))
    return colours


def _with_buffers(step: Step, buffers: _Buffers) -> Step:
    def changes(instruction: BufferInstruction) -> dict[str, int]:
        found = {"buffer": buffers[instruction.stage][instruction.micro_batch]}
        if isinstance(instruction, CopyActivation):
            found["peer_buffer"] = buffers[instruction.peer][instruction.micro_batch]
        return found

    return tuple(
        i.model_copy(update=changes(i)) if isinstance(i, BufferInstruction) else i for i in step
    )
