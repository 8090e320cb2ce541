"""What has to hold of a model's programs, for all sizes, stages and micro-batches.

Each obligation is a formula in which the sizes, stages and micro-batches are unknown. It is
generated from what the instructions declare of themselves (their effects, phase, direction and
position, `schemas/instruction_set/instructions.py`) and from the families of a variant; so an
instruction or an access that is added is asked about, too.
"""

from collections.abc import Iterator
from itertools import product

from schemas import Direction, ForwardPass, Phase, TransferInstruction
from tests.proofs.model import Family
from tests.proofs.scene import (
    Case,
    Obligation,
    Scene,
    equal,
    is_issue,
    model_receives,
    precedes,
    stands,
)
from tests.proofs.terms import Number, Truth, all_of
from tests.proofs.values import values


def obligations(case: Case) -> Iterator[Obligation]:
    """All that has to be proved of a variant of a schedule."""
    count = len(Scene(case).families)
    for number in range(count):
        yield from alone(case, number)
    for first, second in product(range(count), repeat=2):
        yield from in_pairs(case, first, second)
        yield from queued(case, first, second)
    yield from transfers(case)
    yield from values(case)


def alone(case: Case, number: int) -> Iterator[Obligation]:
    """An instruction is where it may be, names what there is, and takes its time."""
    scene = Scene(case)
    model, i = scene.model, scene.families[number](*scene.at())
    name, given = i.op.__name__, [i.exists]
    yield scene.owes(f"{name} is where it makes sense", given, stands(i.op.position, i, model))
    yield scene.owes(
        f"{name} names what exists",
        given,
        all_of(
            i.rank >= 0, i.rank < model.ranks, i.buffer >= 0, i.buffer < model.num_buffers,
            i.step >= 0, i.step < model.steps,
        ),
    )  # fmt: skip
    over = i.end <= model.units * model.steps
    yield scene.owes(f"{name} is over when the steps are", given, over)
    takes = 1 if i.op is ForwardPass or is_issue(i.op) else 0
    yield scene.owes(
        f"{name} takes its time", given, all_of(i.start >= 0, i.end >= i.start + takes)
    )
    if case.barriers:
        units = model.units
        in_step = all_of(i.start >= units * i.step, i.end <= units * (i.step + 1))
        yield scene.owes(f"{name} is between the barriers of its step", given, in_step)
    if i.peer is not None:
        side = -1 if model_receives(i.op) else 1
        known = all_of(i.peer == i.stage + side, i.peer >= 0, i.peer < model.stages)
        away = (model.rank(i.peer) == i.rank) == (not issubclass(i.op, TransferInstruction))
        yield scene.owes(f"{name} names its neighbour", given, all_of(known, away))
    if i.hoisted is not None:
        # The bound is what is to be proved, so it may not be assumed: see `Scene._behind`.
        held = i.hoisted.held_by < i.hoisted.queued[0]
        fresh = [k for k in scene.known if not _mentions(k, i.hoisted.behind)]
        facts = scene.facts.all()
        yield Obligation(f"{case.name}: {name} is held in time", [*fresh, *given, *facts], held)


def in_pairs(case: Case, first: int, second: int) -> Iterator[Obligation]:
    """The keys are an order of the program, and along it time does not go back."""
    scene = Scene(case)
    a, b = (scene.families[number](*scene.at()) for number in (first, second))
    names = f"{a.op.__name__} and {b.op.__name__}"
    same_program = [a.exists, b.exists, a.rank == b.rank]
    same = all_of(first == second, a.stage == b.stage, a.micro_batch == b.micro_batch)
    if first <= second:
        yield scene.owes(f"{names} have a place each", [*same_program, equal(a.key, b.key)], same)
    goes_on = a.start if a.op.effects.phase is Phase.POST else a.end
    yield scene.owes(
        f"{b.op.__name__} behind {a.op.__name__} is not earlier",
        [*same_program, precedes(a.key, b.key)],
        all_of(goes_on <= b.start, a.step <= b.step),
    )
    if a.op is b.op is ForwardPass:
        in_order = [a.stage == b.stage, a.micro_batch < b.micro_batch]
        yield scene.owes("micro-batches are forwarded in order", in_order, precedes(a.key, b.key))


def queued(case: Case, first: int, second: int) -> Iterator[Obligation]:
    """Transfers of a rank end one after the other, in the order in which they are issued."""
    scene = Scene(case)
    a, b = (scene.families[number](*scene.at()) for number in (first, second))
    if is_issue(a.op) and is_issue(b.op):
        given = [a.exists, b.exists, a.rank == b.rank, precedes(a.key, b.key)]
        goal = a.end + 1 <= b.end
        yield scene.owes(f"{a.op.__name__} ahead of {b.op.__name__} ends before it", given, goal)


def transfers(case: Case) -> Iterator[Obligation]:
    """Every send has its receive, the k-th the k-th; every post has its wait."""
    scene = Scene(case)
    stage, m = scene.at()
    sends, receives = _of(scene, Direction.SEND), _of(scene, Direction.RECV)
    send, receive = sends(stage, m), receives(stage + 1, m)
    inside = stage + 1 < scene.model.stages
    yield scene.owes("a send has its receive", [send.exists], all_of(inside, receive.exists))
    yield scene.owes("a receive has its send", [inside, receive.exists], send.exists)
    both = [inside, send.exists, receive.exists]
    yield scene.owes("both ends of a transfer end together", both, send.end == receive.end)
    posted = all_of(send.start + 1 <= receive.end, receive.start + 1 <= send.end)
    yield scene.owes("both ends of a transfer are issued before it", both, posted)

    other_stage, other = scene.at()
    second, its_receive = sends(other_stage, other), receives(other_stage + 1, other)
    channel = [
        *both, other_stage + 1 < scene.model.stages, second.exists, its_receive.exists,
        send.rank == second.rank, receive.rank == its_receive.rank,
        precedes(send.key, second.key),
    ]  # fmt: skip
    order = precedes(receive.key, its_receive.key)
    yield scene.owes("the k-th send of a channel is its k-th receive", channel, order)

    for number, _ in enumerate(scene.families):
        yield from _waited_for(case, number)


def _waited_for(case: Case, number: int) -> Iterator[Obligation]:
    scene = Scene(case)
    at = scene.at()
    post = scene.families[number](*at)
    if post.op.effects.phase is not Phase.POST:
        return
    (wait,) = (
        i
        for i in (family(*at) for family in scene.families)
        if i.op.effects.phase is Phase.WAIT and i.op.direction is post.op.direction
    )
    name = f"{wait.op.__name__} of {post.op.__name__}"
    yield scene.owes(f"{name} exists", [post.exists], wait.exists)
    yield scene.owes(f"{name} has something to wait for", [wait.exists], post.exists)
    waits = all_of(
        precedes(post.key, wait.key), post.end <= wait.end, post.buffer == wait.buffer,
        post.peer == wait.peer,
    )  # fmt: skip
    yield scene.owes(f"{name} ends after it, in the same place", [post.exists, wait.exists], waits)


def _of(scene: Scene, direction: Direction) -> Family:
    """The family that issues the transfers of a direction."""
    at = scene.at()
    (found,) = (
        family
        for family in scene.families
        if is_issue(family(*at).op) and family(*at).op.direction is direction
    )
    return found


def _mentions(formula: Truth, term: Number) -> bool:
    return not isinstance(formula, bool) and term.value.sexpr() in formula.sexpr()
