"""Obligations: formulas in which sizes, stages and micro-batches are unknown, and their solver."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import z3

from schemas import BufferInstruction, Direction, Phase, Position, TransferInstruction
from tests.proofs.model import Family, Instance, Model
from tests.proofs.terms import Facts, Number, Term, Truth, all_of, any_of, negated


class Obligation(NamedTuple):
    """Something to prove."""

    name: str
    known: list[Truth]
    goal: Truth

    def holds(self, seconds: float = 20.0) -> bool:
        """Whether the solver proves it."""
        return self._check(negated(self.goal), seconds) == z3.unsat

    def is_about_something(self, seconds: float = 20.0) -> bool:
        """Whether what is known can be the case at all."""
        return self._check(True, seconds) == z3.sat

    def _check(self, more: Truth, seconds: float) -> z3.CheckSatResult:
        solver = z3.SimpleSolver()
        solver.set("timeout", int(seconds * 1000))
        solver.add(*self.known, more)
        return solver.check()


@dataclass
class Case:
    """A variant of a schedule, to be proved."""

    name: str
    model: Callable[..., Model]
    families: Callable[[Model], list[Family]]
    sizes: Callable[[Facts], tuple[Term, Term, Term, list[Truth]]]
    """Unknown M, S and R, and what is assumed of them."""
    barriers: bool
    """Whether the timetable holds with a barrier after each step, too."""


@dataclass
class Scene:
    """Unknown sizes, and instructions of some families at unknown stages and micro-batches."""

    case: Case
    facts: Facts = field(default_factory=Facts)
    known: list[Truth] = field(default_factory=list)

    def __post_init__(self) -> None:
        micro_batches, stages, ranks, assumed = self.case.sizes(self.facts)
        self.known += [micro_batches >= 1, stages >= 1, ranks >= 1, *assumed]
        self.model = self.case.model(micro_batches, stages, ranks, behind=self._behind)
        self.families = self.case.families(self.model)
        self._posts: list[tuple[Truth, Number, tuple[Number, Number], Term]] = []

    def at(self) -> tuple[Term, Term]:
        """Any stage and micro-batch."""
        stage, micro_batch = self.facts.unknown("stage"), self.facts.unknown("micro_batch")
        self.known += [stage >= 0, stage < self.model.stages]
        self.known += [micro_batch >= 0, micro_batch < self.model.micro_batches]
        return stage, micro_batch

    def owes(self, name: str, given: list[Truth], goal: Truth) -> Obligation:
        """That `goal` follows from what is given."""
        return Obligation(
            f"{self.case.name}: {name}", [*self.known, *given, *self.facts.all()], goal
        )

    def _behind(
        self, exists: Truth, rank: Number, held_by: Number, queued: tuple[Number, Number]
    ) -> Term:
        """Any step that the passes may find, see `Hoisted.behind`.

        It is the largest `held_by` of the entries of a rank's queue so far. So it is not before its
        own, grows along the queue, and is before the step of the entry, since those are: that is
        the obligation "is held in time".
        """
        found = self.facts.unknown("behind")
        in_time = z3.And(found >= held_by, found < queued[0], found >= -1)
        self.known.append(z3.Implies(exists, in_time))
        for other_exists, other_rank, other, behind in self._posts:
            both = z3.And(exists, other_exists, rank == other_rank)
            self.known += [
                z3.Implies(z3.And(both, precedes(queued, other)), found <= behind),
                z3.Implies(z3.And(both, precedes(other, queued)), behind <= found),
                z3.Implies(z3.And(both, equal(queued, other)), behind == found),
            ]
        self._posts.append((exists, rank, queued, found))
        return found


def precedes(key: tuple[Number, ...], other: tuple[Number, ...]) -> Truth:
    """Whether a key comes before another, lexicographically."""
    assert len(key) == len(other)
    later = all_of(key[0] == other[0], precedes(key[1:], other[1:])) if len(key) > 1 else False
    return any_of(key[0] < other[0], later)


def equal(key: tuple[Number, ...], other: tuple[Number, ...]) -> Truth:
    """Whether two keys are the same."""
    return all_of(*(a == b for a, b in zip(key, other, strict=True)))


def is_issue(op: type[BufferInstruction]) -> bool:
    """Whether an instruction issues a transfer."""
    return issubclass(op, TransferInstruction) and op.effects.phase is not Phase.WAIT


def model_receives(op: type[BufferInstruction]) -> bool:
    """Whether an instruction's peer is the stage before."""
    return getattr(op, "direction", Direction.RECV) is Direction.RECV


def stands(position: Position, i: Instance, model: Model) -> Truth:
    """Whether an instruction's stage stands at a position."""
    return stands_on(position, i.stage, model)


def stands_on(position: Position, stage: Number, model: Model) -> Truth:
    """`Position.includes`, of any number."""
    first, last = stage == 0, stage == model.stages - 1
    return {
        Position.ANY: True,
        Position.FIRST: first,
        Position.LAST: last,
        Position.FIRST_OR_LAST: any_of(first, last),
        Position.NOT_FIRST: negated(first),
        Position.NOT_LAST: negated(last),
    }[position]
