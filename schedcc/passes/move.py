"""Move posts ahead and waits behind, as far as the places of the buffers allow.

Transfers of a rank end in the order of its queue. Where the ranks form a chain, no order of them
can deadlock (`docs/explanation/checking.md`), and receives are posted ahead of sends. Where the
channels lead around in a circle, as in a ring, they stay in the order of the blocking program,
which is free of deadlock.
"""

from collections.abc import Callable, Hashable
from typing import NamedTuple

from schemas import (
    BufferInstruction,
    BufferPlace,
    Direction,
    GroupEnd,
    GroupStart,
    Phase,
    PlanHeader,
    RankProgram,
    StepInstruction,
    Transfer,
    TransferInstruction,
)
from schemas.plans import in_circle


class Item(NamedTuple):
    """What moves as one: an instruction, or a whole group with its brackets."""

    step: int
    instructions: tuple[StepInstruction, ...]

    @property
    def is_group(self) -> bool:
        """Whether it is a group."""
        return len(self.instructions) > 1


def hoist_sends(program: RankProgram, header: PlanHeader) -> RankProgram:
    """Post each send as soon as its value is there.

    >>> from schedcc import compile_stage
    >>> from schedcc.io.picture import cell
    >>> from schedcc.passes.split import split_transfers
    >>> plan = compile_stage(2, 3, 1)
    >>> program = split_transfers(plan.program, plan)
    >>> [cell(step).plain for step in program.steps]
    ['', 'r<0 r.0 F0', 'r<1 r.1 s>0 s.0 F1', 's>1 s.1']
    >>> [cell(step).plain for step in hoist_sends(program, plan).steps]
    ['', 'r<0 r.0 F0 s>0', 'r<1 r.1 s.0 F1 s>1', 's.1']
    """
    return program if in_circle(header.placement) else _hoist(program, header, Direction.SEND)


def hoist_receives(program: RankProgram, header: PlanHeader) -> RankProgram:
    """Post each receive as soon as its place is free.

    It does not pass the sends that are posted right where its place becomes free: a stage's
    transfers queue up, and in front of them it would hold them up until its own message comes.

    >>> from schedcc import compile_stage
    >>> from schedcc.io.picture import cell
    >>> from schedcc.passes.split import split_transfers
    >>> plan = compile_stage(3, 3, 1)
    >>> program = hoist_sends(split_transfers(plan.program, plan), plan)
    >>> [cell(step).plain for step in program.steps]
    ['', 'r<0 r.0 F0 s>0', 'r<1 r.1 s.0 F1 s>1', 'r<2 r.2 s.1 F2 s>2', 's.2']
    >>> [cell(step).plain for step in hoist_receives(program, plan).steps]
    ['r<0 r<1', 'r.0 F0 s>0 r<2', 'r.1 s.0 F1 s>1', 'r.2 s.1 F2 s>2', 's.2']
    """
    return program if in_circle(header.placement) else _hoist(program, header, Direction.RECV)


def hoist_in_order(program: RankProgram, header: PlanHeader) -> RankProgram:
    """Where channels lead in circles: post all transfers early, in the order that they have.

    >>> from schedcc import compile_pipeline
    >>> from schedcc.io.picture import cell
    >>> from schedcc.passes.split import split_transfers
    >>> plan = compile_pipeline(2, 4, schedule="interleaved", ranks=2)
    >>> program = split_transfers(plan.programs[1], plan)
    >>> [cell(step, staged=True).plain for step in program.steps[1:4]]
    ['1r<0 1r.0 1F0', '1r<1 1r.1 1s>0 1s.0 1F1', '3L0 3r<0 3r.0 1s>1 1s.1 3F0']
    >>> [cell(step, staged=True).plain for step in hoist_in_order(program, plan).steps[:4]]
    ['1r<0 1r<1', '1r.0 1F0 1s>0 3r<0', '1r.1 1s.0 1F1 1s>1 3r<1', '3L0 3r.0 1s.1 3F0']
    """
    return _hoist(program, header, None) if in_circle(header.placement) else program


def hoist_by_channel(program: RankProgram, header: PlanHeader) -> RankProgram:
    """Post sends and receives as early as can be, whatever the other channels of the rank do.

    What comes out may deadlock on one queue for each rank, if channels lead around in a circle.

    >>> from schedcc import compile_pipeline
    >>> from schedcc.io.picture import cell
    >>> from schedcc.passes.split import split_transfers
    >>> plan = compile_pipeline(3, 4, schedule="interleaved", ranks=2)
    >>> program = split_transfers(plan.programs[0], plan)
    >>> [cell(step, staged=True).plain for step in hoist_by_channel(program, plan).steps[:3]]
    ['2r<0 2r<1 0L0 0F0 0s>0', '0L1 0s.0 0F1 0s>1', '0s.1 2r.0 2F0 2s>0 2r<2']
    """
    return _hoist(_hoist(program, header, Direction.SEND), header, Direction.RECV)


def sink_waits(program: RankProgram, header: PlanHeader) -> RankProgram:
    """Wait for each transfer only where its place is needed next, or at the end.

    >>> from schedcc import compile_stage
    >>> from schedcc.io.picture import cell
    >>> from schedcc.passes.split import split_transfers
    >>> plan = compile_stage(3, 3, 1)
    >>> program = hoist_sends(split_transfers(plan.program, plan), plan)
    >>> [cell(step).plain for step in program.steps]
    ['', 'r<0 r.0 F0 s>0', 'r<1 r.1 s.0 F1 s>1', 'r<2 r.2 s.1 F2 s>2', 's.2']
    >>> [cell(step).plain for step in sink_waits(program, plan).steps]
    ['', 'r<0 r.0 F0 s>0', 'r<1 r.1 F1 s>1', 'r<2 s.0 r.2 F2 s>2', 's.1 s.2']
    """
    sunk: list[Item] = []
    waits: list[StepInstruction] = []
    for item in _items(program):
        first = item.instructions[0]
        if first.effects.phase is Phase.WAIT:
            waits.append(first)
            continue
        touched = _touched(item.instructions, header)
        due = [w for w in waits if touched & _touched((w,), header)]
        waits = [w for w in waits if w not in due]
        sunk += [*(Item(item.step, (wait,)) for wait in due), item]
    end = len(program.steps) - 1
    return _rebuilt(program, sunk + [Item(end, (wait,)) for wait in waits])


def _hoist(program: RankProgram, header: PlanHeader, direction: Direction | None) -> RankProgram:
    """Move the posts of one direction to the front, or all of them, until something holds them.

    Backwards through the program with the posts in hand, until an instruction touches the place
    of one of them: it goes right behind that instruction, and so do the posts behind it on its
    channel, since messages match by order; of all posts, those behind it in the queue. Nothing
    leaves a group, enters one, or passes one with a post of its channel.
    """
    queue = _channels(header) if direction is not None else (lambda _: None)
    behind: list[Item] = []  # what has been passed, last instruction first
    posts: list[Transfer] = []  # in hand, last one first
    for item in reversed(_items(program)):
        if post := _single_post(item, direction):
            posts.append(post)
            continue
        touched = _touched(item.instructions, header)
        passed = {queue(i) for i in item.instructions if isinstance(i, TransferInstruction)}
        held = [
            p
            for p in posts
            if touched & _touched((p,), header) or (item.is_group and queue(p) in passed)
        ]
        last_held = {queue(post): posts.index(post) for post in held}
        due = [
            p for number, p in enumerate(posts) if p in held or number < last_held.get(queue(p), 0)
        ]
        posts = [p for p in posts if p not in due]
        _drop(behind, [Item(item.step, (post,)) for post in due], direction)
        behind.append(item)
    _drop(behind, [Item(0, (post,)) for post in posts], direction)
    return _rebuilt(program, behind[::-1])


def _channels(header: PlanHeader) -> Callable[[TransferInstruction], Hashable]:
    return lambda transfer: (transfer.direction, header.rank_of(transfer.peer))


def _drop(behind: list[Item], due: list[Item], direction: Direction | None) -> None:
    """Put posts in front of what has been passed; receives behind the sends that come first."""
    sends: list[Item] = []
    while due and direction is Direction.RECV and behind:
        if _single_post(behind[-1], Direction.SEND) is None:
            break
        sends.append(behind.pop())
    behind += due + sends[::-1]


def _single_post(item: Item, direction: Direction | None) -> Transfer | None:
    """The post that an item is, outside of groups."""
    instruction = item.instructions[0]
    if (
        isinstance(instruction, TransferInstruction)
        and instruction.effects.phase is Phase.POST
        and direction in (instruction.direction, None)
    ):
        return instruction
    return None


def _touched(
    instructions: tuple[StepInstruction, ...], header: PlanHeader
) -> frozenset[BufferPlace]:
    return frozenset(
        place
        for instruction in instructions
        if isinstance(instruction, BufferInstruction)
        for accesses in (instruction.effects.reads, instruction.effects.writes)
        for place in instruction.touches(accesses, header.stages)
    )


def _items(program: RankProgram) -> list[Item]:
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


def _rebuilt(program: RankProgram, items: list[Item]) -> RankProgram:
    steps: list[list[StepInstruction]] = [[] for _ in program.steps]
    for item in items:
        steps[item.step] += item.instructions
    return program.model_copy(update={"steps": tuple(map(tuple, steps))})
