"""What places hold: obligations that are generated from the effects that instructions declare."""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from schemas import BufferInstruction, Phase, Place, Position
from schemas.instruction_set.effects import Access
from tests.proofs.model import Instance
from tests.proofs.scene import Case, Obligation, Scene, precedes, stands, stands_on
from tests.proofs.terms import Number, Truth, all_of, any_of, negated


def values(case: Case) -> Iterator[Obligation]:
    """Every place holds the micro-batch that is read, is not touched in flight, and is read."""
    count = len(Scene(case).families)
    for place in Place:
        touching = [
            (number, access, writes)
            for number in range(count)
            for access, writes in _accesses(_op(case, number), place)
        ]
        for one, other in product(touching, repeat=2):
            yield from _lives(case, place, one, other)
        yield from _read_and_written(case, place, touching)


Touch = tuple[int, Access, bool]
"""A family, its access to the place, and whether it writes."""


def _lives(case: Case, place: Place, one: Touch, other: Touch) -> Iterator[Obligation]:
    """The micro-batches of a place have it one after the other; within one: written, then read."""
    scene = Scene(case)
    (s, m), (_, later) = scene.at(), scene.at()
    a, b = _touch(scene, one, s, m), _touch(scene, other, s, later)
    names = f"{a.instance.op.__name__} and {b.instance.op.__name__}"
    given = [a.happens, b.happens, m < later, a.buffer == b.buffer]
    goal = precedes(a.instance.key, b.instance.key)
    yield scene.owes(f"{names} touch the {place} one micro-batch after the other", given, goal)

    scene = Scene(case)
    s, m = scene.at()
    a, b = _touch(scene, one, s, m), _touch(scene, other, s, m)
    if one[2] and not other[2]:
        given = [a.happens, b.happens]
        goal = all_of(a.buffer == b.buffer, precedes(a.instance.key, b.instance.key))
        yield scene.owes(f"{names}: the {place} is written, then read", given, goal)


def _read_and_written(case: Case, place: Place, touching: list[Touch]) -> Iterator[Obligation]:
    """A place is written once and read once, by whole instructions or by their waits."""
    scene = Scene(case)
    s, m = scene.at()
    found = [(t, _touch(scene, t, s, m)) for t in touching]
    done = [(t, i) for t, i in found if i.instance.op.effects.phase is not Phase.POST]
    writes = [i.happens for (_, _, w), i in done if w]
    reads = [i.happens for (_, _, w), i in done if not w]
    delivered = [i.happens for (_, a, w), i in done if w and a in _delivered(i.instance.op, place)]
    yield scene.owes(f"an {place} that is read was written", [any_of(*reads)], any_of(*writes))
    kept = any_of(*reads, *(all_of(d, stands_on(Position.LAST, s, scene.model)) for d in delivered))
    yield scene.owes(f"an {place} that is written is read", [any_of(*writes)], kept)
    for kind, happens in (("written", writes), ("read", reads)):
        twice = [all_of(a, b) for k, a in enumerate(happens) for b in happens[:k]]
        yield scene.owes(f"an {place} is {kind} once", [], negated(any_of(*twice)))


class _Touched(NamedTuple):
    instance: Instance
    happens: Truth
    buffer: Number


def _touch(scene: Scene, touch: Touch, s: Number, m: Number) -> _Touched:
    """The instruction of a family that touches a place of stage `s` for `m`."""
    number, access, _ = touch
    own = s + 1 if access.of_peer else s
    i = scene.families[number](own, m)
    inside = own < scene.model.stages
    buffer = i.peer_buffer if access.of_peer else i.buffer
    return _Touched(i, all_of(inside, i.exists, stands(access.on, i, scene.model)), buffer)


def _accesses(op: type[BufferInstruction], place: Place) -> Iterator[tuple[Access, bool]]:
    yield from ((access, False) for access in op.effects.reads if access.place is place)
    yield from ((access, True) for access in op.effects.writes if access.place is place)


def _delivered(op: type[BufferInstruction], place: Place) -> list[Access]:
    """Writes of which the instruction hands the value out itself, on the last stage."""
    places = [access.place for access in op.effects.delivers]
    return [access for access in op.effects.writes if access.place is place and place in places]


def _op(case: Case, number: int) -> type[BufferInstruction]:
    scene = Scene(case)
    return scene.families[number](*scene.at()).op
