"""Buffers for a program that names none: as many as its values need at once."""

from heapq import heappop, heappush

from schemas import BufferInstruction, RankProgram, Step


def with_buffers(program: RankProgram) -> tuple[RankProgram, int]:
    """Give every micro-batch a buffer from its first to its last instruction.

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
        The program, and the number of its buffers.
    """
    lives: dict[int, list[int]] = {}
    for placed in program.placed():
        if isinstance(placed.instruction, BufferInstruction):
            first_and_last = lives.setdefault(placed.instruction.micro_batch, [placed.offset] * 2)
            first_and_last[1] = placed.offset
    buffers: dict[int, int] = {}
    free: list[int] = []
    ends: list[tuple[int, int]] = []
    count = 0
    for micro_batch, (first, last) in lives.items():  # in the order of their first instructions
        while ends and ends[0][0] < first:
            heappush(free, heappop(ends)[1])
        if not free:
            heappush(free, count)
            count += 1
        buffers[micro_batch] = heappop(free)
        heappush(ends, (last, buffers[micro_batch]))
    steps = tuple(_with_buffers(step, buffers) for step in program.steps)
    return program.model_copy(update={"steps": steps}), max(count, 1)


def _with_buffers(step: Step, buffers: dict[int, int]) -> Step:
    return tuple(
        i.model_copy(update={"buffer": buffers[i.micro_batch]})
        if isinstance(i, BufferInstruction)
        else i
        for i in step
    )
