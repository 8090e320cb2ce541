"""Move posts ahead and waits behind, as far as the places of the buffers allow."""

from typing import TypeGuard

from schemas import (
    BufferInstruction,
    Direction,
    Phase,
    Place,
    StageProgram,
    StepInstruction,
    Transfer,
    TransferInstruction,
    places,
)

Item = tuple[int, StepInstruction]
"""A step and an instruction in it."""


def hoist_sends(program: StageProgram, stages: int) -> StageProgram:
    """Post each send as soon as its value is there.

    >>> from schedcc import compile_stage
    >>> from schedcc.grid import cell
    >>> from schedcc.passes.split import split_transfers
    >>> program = split_transfers(compile_stage(2, 3, 1).program, 3)
    >>> [cell(step).plain for step in program.steps]
    ['', 'r<0 r.0 F0', 'r<1 r.1 s>0 s.0 F1', 's>1 s.1']
    >>> [cell(step).plain for step in hoist_sends(program, 3).steps]
    ['', 'r<0 r.0 F0 s>0', 'r<1 r.1 s.0 F1 s>1', 's.1']
    """
    return _hoist(program, stages, Direction.SEND)


def hoist_receives(program: StageProgram, stages: int) -> StageProgram:
    """Post each receive as soon as its place is free.

    It does not pass the sends that are posted right where its place becomes free: a stage's
    transfers queue up, and in front of them it would hold them up until its own message comes.

    >>> from schedcc import compile_stage
    >>> from schedcc.grid import cell
    >>> from schedcc.passes.split import split_transfers
    >>> program = hoist_sends(split_transfers(compile_stage(3, 3, 1).program, 3), 3)
    >>> [cell(step).plain for step in program.steps]
    ['', 'r<0 r.0 F0 s>0', 'r<1 r.1 s.0 F1 s>1', 'r<2 r.2 s.1 F2 s>2', 's.2']
    >>> [cell(step).plain for step in hoist_receives(program, 3).steps]
    ['r<0 r<1', 'r.0 F0 s>0 r<2', 'r.1 s.0 F1 s>1', 'r.2 s.1 F2 s>2', 's.2']
    """
    return _hoist(program, stages, Direction.RECV)


def sink_waits(program: StageProgram, stages: int) -> StageProgram:
    """Wait for each transfer only where its place is needed next, or at the end.

    >>> from schedcc import compile_stage
    >>> from schedcc.grid import cell
    >>> from schedcc.passes.split import split_transfers
    >>> program = hoist_sends(split_transfers(compile_stage(3, 3, 1).program, 3), 3)
    >>> [cell(step).plain for step in program.steps]
    ['', 'r<0 r.0 F0 s>0', 'r<1 r.1 s.0 F1 s>1', 'r<2 r.2 s.1 F2 s>2', 's.2']
    >>> [cell(step).plain for step in sink_waits(program, 3).steps]
    ['', 'r<0 r.0 F0 s>0', 'r<1 r.1 F1 s>1', 'r<2 s.0 r.2 F2 s>2', 's.1 s.2']
    """
    sunk: list[Item] = []
    waits: list[StepInstruction] = []
    for step, instruction in _items(program):
        if instruction.effects.phase is Phase.WAIT:
            waits.append(instruction)
            continue
        touched = _touched(instruction, program.stage_id, stages)
        due = [w for w in waits if touched & _touched(w, program.stage_id, stages)]
        waits = [w for w in waits if w not in due]
        sunk += [(step, wait) for wait in due] + [(step, instruction)]
    end = len(program.steps) - 1
    return _rebuilt(program, sunk + [(end, wait) for wait in waits])


def _hoist(program: StageProgram, stages: int, direction: Direction) -> StageProgram:
    """Move the posts of one direction to the front, until something holds them back.

    Backwards through the program with the posts in hand, until an instruction touches the place
    of one of them: it goes right behind that instruction, and so do the posts behind it on its
    channel, since messages match by order.
    """
    behind: list[Item] = []  # what has been passed, last instruction first
    posts: list[Transfer] = []  # in hand, last one first
    for step, instruction in reversed(_items(program)):
        if _is_post(instruction, direction):
            posts.append(instruction)
            continue
        touched = _touched(instruction, program.stage_id, stages)
        held = [p for p in posts if touched & _touched(p, program.stage_id, stages)]
        held_channels = {_channel(post): posts.index(post) for post in held}
        due = [
            p
            for number, p in enumerate(posts)
            if p in held or number < held_channels.get(_channel(p), 0)
        ]
        posts = [p for p in posts if p not in due]
        _drop(behind, [(step, post) for post in due], direction)
        behind.append((step, instruction))
    _drop(behind, [(0, post) for post in posts], direction)
    return _rebuilt(program, behind[::-1])


def _drop(behind: list[Item], due: list[Item], direction: Direction) -> None:
    """Put posts in front of what has been passed; receives behind the sends that come first."""
    sends: list[Item] = []
    while due and direction is Direction.RECV and behind:
        if not _is_post(behind[-1][1], Direction.SEND):
            break
        sends.append(behind.pop())
    behind += due + sends[::-1]


def _is_post(instruction: StepInstruction, direction: Direction) -> TypeGuard[Transfer]:
    return (
        isinstance(instruction, TransferInstruction)
        and instruction.effects.phase is Phase.POST
        and instruction.direction is direction
    )


def _channel(post: Transfer) -> tuple[Direction, int]:
    return post.direction, post.peer


def _touched(
    instruction: StepInstruction, stage_id: int, stages: int
) -> frozenset[tuple[int, Place]]:
    if not isinstance(instruction, BufferInstruction):
        return frozenset()
    effects = instruction.effects
    touched = places(effects.reads + effects.writes, stage_id, stages)
    return frozenset((instruction.buffer, place) for place in touched)


def _items(program: StageProgram) -> list[Item]:
    return [(step, i) for step, instructions in enumerate(program.steps) for i in instructions]


def _rebuilt(program: StageProgram, items: list[Item]) -> StageProgram:
    steps: list[list[StepInstruction]] = [[] for _ in program.steps]
    for step, instruction in items:
        steps[step].append(instruction)
    return program.model_copy(update={"steps": tuple(map(tuple, steps))})
