"""The programs of the schedules that ship, as formulas of M, S and R.

A program is a handful of *families*, one for each instruction class: where it exists, its fields,
its place in the program, and its time in the timetable, all for any stage `s` and micro-batch `m`.
Numbers are Python's or the solver's (`tests.proofs.terms`): with the former a model is evaluated
and compared with what is compiled, with the latter it is proved.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from schedcc.schedules import Inference, Interleaved, Schedule, VShape
from schemas import BufferInstruction
from tests.proofs.terms import Number, Truth, all_of, any_of, where


@dataclass(frozen=True)
class Instance:
    """An instruction of a family, for one stage and micro-batch."""

    op: type[BufferInstruction]
    exists: Truth
    """Whether the program has it; stage and micro-batch are in range."""
    stage: Number
    micro_batch: Number
    rank: Number
    buffer: Number
    step: Number
    key: tuple[Number, ...]
    """The program is in the lexicographic order of the keys."""
    start: Number
    end: Number
    """Of a post: the end of its transfer."""
    peer: Number | None = None
    peer_buffer: Number | None = None
    hoisted: "Hoisted | None" = None


@dataclass(frozen=True)
class Hoisted:
    """A post that has been moved ahead, as `hoist_in_order` does."""

    held_by: Number
    """The step whose forward is the last to touch the place of the transfer before it; -1: none."""
    queued: tuple[Number, Number]
    """Step and slot of the transfer in the blocking program, whose order the queue keeps."""
    behind: Number
    """The step behind whose forward the post stands: the latest by which it, or a transfer ahead of
    it in the queue, is held."""


Behind = Callable[[Truth, Number, Number, tuple[Number, Number]], Number]
"""`(exists, rank, held_by, queued) -> Hoisted.behind`."""
Family = Callable[[Number, Number], Instance]


@dataclass
class Model:
    """The sizes of a pipeline, and what all programs of a schedule have in common."""

    micro_batches: Number
    stages: Number
    ranks: Number
    behind: Behind | None = field(default=None, kw_only=True)
    """How far posts of the overlapped variant are hoisted, if they stay in order."""

    schedule: Any = field(init=False)
    slots: int = field(init=False)
    """Slots of a step, of which a transfer takes one; a forward follows."""

    def rank(self, stage: Number) -> Number:
        """The rank of a stage."""
        raise NotImplementedError

    def slot(self, stage: Number) -> Number:
        """The slot in which a stage sends."""
        raise NotImplementedError

    @property
    def num_buffers(self) -> Number:
        """Buffers of a stage: 1 or 2."""
        raise NotImplementedError

    def step_of(self, stage: Number, micro_batch: Number) -> Number:
        """The step of a forward: the shipped schedule's own formula."""
        return self.schedule.enters(micro_batch, self.stages, self.ranks) + stage

    def buffer_of(self, micro_batch: Number) -> Number:
        """The buffer of a micro-batch."""
        return where(self.num_buffers == 1, 0 * micro_batch, micro_batch % 2)

    @property
    def units(self) -> int:
        """Units of time of a step: its slots, and a forward."""
        return self.slots + 1

    @property
    def steps(self) -> Number:
        """The number of steps."""
        return self.step_of(self.stages - 1, self.micro_batches - 1) + 1

    def ends(self, stage: Number) -> Truth:
        """Whether a stage is the first or the last."""
        return any_of(stage == 0, stage == self.stages - 1)

    def copies(self, stage: Number) -> Truth:
        """Whether a stage has the stage before on its own rank."""
        return all_of(stage >= 1, self.rank(stage - 1) == self.rank(stage))

    def receives(self, stage: Number) -> Truth:
        """Whether a stage has the stage before on another rank."""
        return all_of(stage >= 1, self.rank(stage - 1) != self.rank(stage))

    def sends(self, stage: Number) -> Truth:
        """Whether a stage has the stage behind on another rank."""
        return all_of(stage <= self.stages - 2, self.rank(stage + 1) != self.rank(stage))

    def instance(self, op: type[BufferInstruction], s: Number, m: Number, **more: Any) -> Instance:
        """An instruction of stage `s` and micro-batch `m`."""
        own = {"stage": s, "micro_batch": m, "rank": self.rank(s), "buffer": self.buffer_of(m)}
        return Instance(op=op, **own, **more)


class InferenceModel(Model):
    """Stage `s` is on rank `s`; even stages send in the first of two slots."""

    schedule: Schedule = Inference()
    slots = 2

    def rank(self, stage: Number) -> Number:
        return stage

    def slot(self, stage: Number) -> Number:
        return where(self.micro_batches == 1, 0 * stage, stage % 2)

    @property
    def num_buffers(self) -> Number:
        return 2 + 0 * self.stages


class InterleavedModel(Model):
    """Rank `s mod R` holds stage `s`; in a ring of an odd number of ranks, one channel is third."""

    schedule: Schedule = Interleaved()
    slots = 3

    def rank(self, stage: Number) -> Number:
        return stage % self.ranks

    def slot(self, stage: Number) -> Number:
        rank, ranks = self.rank(stage), self.ranks
        farthest = ranks // 2 + 1
        around = where(rank == farthest, 2 + 0 * rank, (ranks - rank) % 2)
        closed = all_of(ranks % 2 == 1, rank >= farthest, self.stages > ranks)
        return where(self.micro_batches == 1, 0 * rank, where(closed, around, rank % 2))

    @property
    def num_buffers(self) -> Number:
        apart = all_of(self.ranks == 1, self.stages >= 2)
        return where(apart, 1 + 0 * self.stages, 2 + 0 * self.stages)


class VShapeModel(Model):
    """Ranks `s` and `2 R - 1 - s` hold stage `s`, there and back; back comes behind there."""

    schedule: Schedule = VShape()
    slots = 2

    def rank(self, stage: Number) -> Number:
        return where(stage < self.ranks, stage, 2 * self.ranks - 1 - stage)

    def slot(self, stage: Number) -> Number:
        # The two channels between a pair of ranks meet once the pipeline is full that far.
        meet = self.micro_batches >= self.ranks - self.rank(stage) + 1
        return where(all_of(stage >= self.ranks, meet), 1 + 0 * stage, 0 * stage)

    @property
    def num_buffers(self) -> Number:
        return 1 + 0 * self.stages
