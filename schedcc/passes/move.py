"""Move posts ahead and waits behind, as far as the places of the buffers allow."""

from typing import NamedTuple

from schemas import (
    BufferInstruction,
    Direction,
    GroupEnd,
    GroupStart,
    Phase,
    Place,
    StageProgram,
    StepInstruction,
    Transfer,
    TransferInstruction,
    places,
)


class Item(NamedTuple):
    """What moves as one: an instruction, or a whole group with its brackets."""

    step: int
    instructions: tuple[StepInstruction, ...]

    @property
    def is_group(self) -> bool:
        """Whether it is a group."""
        return len(self.instructions) > 1


def hoist_sends(program: StageProgram, stages: int) -> StageProgram:
    """Post each send as soon as its value is there.

    >>> from schedcc import compile_stage
    >>> from schedcc.io.picture import cell
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
    >>> from schedcc.io.picture import cell
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
    >>> from schedcc.io.picture import cell
    >>> from schedcc.passes.split import split_transfers
    >>> program = hoist_sends(split_transfers(compile_stage(3, 3, 1).program, 3), 3)
    >>> [cell(step).plain for step in program.steps]
    ['', 'r<0 r.0 F0 s>0', 'r<1 r.1 s.0 F1 s>1', 'r<2 r.2 s.1 F2 s>2', 's.2']
    >>> [cell(step).plain for step in sink_waits(program, 3).steps]
    ['', 'r<0 r.0 F0 s>0', 'r<1 r.1 F1 s>1', 'r<2 s.0 r.2 F2 s>2', 's.1 s.2']
    """
    sunk: list[Item] = []
    waits: list[StepInstruction] = []
    for item in _items(program):
        first = item.instructions[0]
        if first.effects.phase is Phase.WAIT:
            waits.append(first)
            continue
        touched = _touched(item.instructions, program.stage_id, stages)
        due = [w for w in waits if touched & _touched((w,), program.stage_id, stages)]
        waits = [w for w in waits if w not in due]
        sunk += [*(Item(item.step, (wait,)) for wait in due), item]
    end = len(program.steps) - 1
    return _rebuilt(program, sunk + [Item(end, (wait,)) for wait in waits])


def _hoist(program: StageProgram, stages: int, direction: Direction) -> StageProgram:
    """Move the posts of one direction to the front, until something holds them back.

    Backwards through the program with the posts in hand, until an instruction touches the place
    of one of them: it goes right behind that instruction, and so do the posts behind it on its
    channel, since messages match by order. Nothing leaves a group, enters one, or passes one with a
    post of its channel.
    """
    behind: list[Item] = []  # what has been passed, last instruction first
    posts: list[Transfer] = []  # in hand, last one first
    for item in reversed(_items(program)):
        if post := _single_post(item, direction):
            posts.append(post)
            continue
        touched = _touched(item.instructions, program.stage_id, stages)
        passed = {_channel(i) for i in item.instructions if isinstance(i, TransferInstruction)}
        held = [
            p
            for p in posts
            if touched & _touched((p,), program.stage_id, stages)
            or (item.is_group and _channel(p) in passed)
        ]
        held_channels = {_channel(post): posts.index(post) for post in held}
        due = [
            p
            for number, p in enumerate(posts)
            if p in held or number < held_channels.get(_channel(p), 0)
        ]
        posts = [p for p in posts if p not in due]
        _drop(behind, [Item(item.step, (post,)) for post in due], direction)
        behind.append(item)
    _drop(behind, [Item(0, (post,)) for post in posts], direction)
    return _rebuilt(program, behind[::-1])


def _drop(behind: list[Item], due: list[Item], direction: Direction) -> None:
    """Put posts in front of what has been passed; receives behind the sends that come first."""
    sends: list[Item] = []
    while due and direction is Direction.RECV and behind:
        if _single_post(behind[-1], Direction.SEND) is None:
            break
        sends.append(behind.pop())
    behind += due + sends[::-1]


def _single_post(item: Item, direction: Direction) -> Transfer | None:
    """The post that an item is, outside of groups."""
    instruction = item.instructions[0]
    if (
        isinstance(instruction, TransferInstruction)
        and instruction.effects.phase is Phase.POST
        and instruction.direction is direction
    ):
        return instruction
    return None


def _channel(transfer: TransferInstruction) -> tuple[Direction, int]:
    return transfer.direction, transfer.peer


def _touched(
    instructions: tuple[StepInstruction, ...], stage_id: int, stages: int
) -> frozenset[tuple[int, Place]]:
    return frozenset(
        (instruction.buffer, place)
        for instruction in instructions
        if isinstance(instruction, BufferInstruction)
        for accesses in (instruction.effects.reads, instruction.effects.writes)
        for place in places(accesses, stage_id, stages)
    )


def _items(program: StageProgram) -> list[Item]:
    items: list[Item] = []
    for step, instructions in enumerate(program.steps):
        group: list[StepInstruction] = []
        for instruction in instructions:
            if group or isinstance(instruction, GroupStart):
                group.append(instruction)
            else:
                items.append(Item(step, (instruction,)))
            if isinstance(instruction, GroupEnd):
                items.append(Item(step, tuple(group)))
                group = []
    return items


def _rebuilt(program: StageProgram, items: list[Item]) -> StageProgram:
    steps: list[list[StepInstruction]] = [[] for _ in program.steps]
    for item in items:
        steps[item.step] += item.instructions
    return program.model_copy(update={"steps": tuple(map(tuple, steps))})
