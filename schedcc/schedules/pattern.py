"""Patterns: the program of one stage as a short one whose middle repeats.

The inference schedule and its overlapped form look the same two micro-batches later (there are two
buffers) and two stages further on (even and odd stages differ)::

    M = 8    | r<0 r<1 | r.0 F0 s>0 r<2 ... | s.2 r.4 F4 s>4 r<6  s.3 r.5 F5 s>5 r<7 | ...
             front      head                 period                                     tail

So the passes need to see a pipeline of at most 11 micro-batches and 7 stages only; all others are
stretched from it, in time proportional to the rows wanted, and with no more memory than the caller
keeps. That the result is what the passes make of the long program is a test; that it is sound, the
checks find out anew each time.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from schedcc.passes import overlapped
from schedcc.schedules.inference import NUM_BUFFERS, inference_steps
from schedcc.table.table import Rows
from schemas import StageProgram

_PERIOD = NUM_BUFFERS
_HEAD = 4
"""Steps from the first forward on, after which all periods are alike."""
_MICRO_BATCHES = 10
"""Enough for a head, a period and a tail of which the first steps are like those of a period."""
_STAGES = 6
"""The first stage, an odd and an even one whose own last step is not the last of all, and the end
of the pipeline."""
_PERIODS_PER_BLOCK = 1024


@dataclass(frozen=True, eq=False)
class Block:
    """The rows of the steps from `first` up to but not including `stop`."""

    rows: Rows
    first: int
    stop: int


@dataclass(frozen=True, eq=False)
class Pattern:
    """The program of one stage."""

    head: Block
    period: Block
    """Its first occurrence."""
    repeats: int
    tail: Block

    def blocks(self) -> Iterator[Block]:
        """The whole program, in pieces of bounded size."""
        yield self.head
        length, rows = len(self.period.rows), self.period.rows
        for begin in range(0, self.repeats, _PERIODS_PER_BLOCK):
            count = min(_PERIODS_PER_BLOCK, self.repeats - begin)
            later = np.repeat(_PERIOD * np.arange(begin, begin + count), length)
            tiled = rows[np.tile(np.arange(length), count)]
            first = self.period.first + _PERIOD * begin
            shifted = tiled.shifted(micro_batch=later, step=later)
            yield Block(shifted, first, first + _PERIOD * count)
        yield self.tail

    def rows(self) -> Rows:
        """All rows of the program's steps."""
        return Rows.joined([block.rows for block in self.blocks()])


def stage_pattern(micro_batches: int, stages: int, stage_id: int, *, overlap: bool) -> Pattern:
    """The program of stage `stage_id` for M micro-batches and S stages."""
    few = min(micro_batches, _MICRO_BATCHES + micro_batches % _PERIOD)
    short = min(stages, _STAGES + stages % 2)
    like = _like(stage_id, stages, short)
    rows = _small(few, short, like, overlap)
    further, later = stage_id - like, micro_batches - few
    last = few + short - 2
    # What waits at the very end, or was posted at the very start, stays there.
    step = np.where(rows.step < like, rows.step, rows.step + further)
    at_end = rows.step == last
    step[at_end] = last + stages - short
    rows = replace(rows.shifted(peer=further), step=step)

    head_stop, total = stage_id + _HEAD, micro_batches + stages - 1
    if later == 0:
        nothing = Block(rows[:0], total, total)
        return Pattern(Block(rows, 0, total), nothing, 0, nothing)
    head, tail = step < head_stop, step >= head_stop + _PERIOD
    return Pattern(
        head=Block(rows[head], 0, head_stop),
        period=Block(rows[~head & ~tail], head_stop, head_stop + _PERIOD),
        repeats=later // _PERIOD + 1,
        tail=Block(
            rows[tail].shifted(micro_batch=later, step=later), head_stop + _PERIOD + later, total
        ),
    )


def _like(stage_id: int, stages: int, short: int) -> int:
    """The stage of the short pipeline that stands for `stage_id`."""
    if stages == short or stage_id == 0:
        return stage_id
    from_end = stages - stage_id
    return short - from_end if from_end <= 2 else 2 - stage_id % 2


@lru_cache(maxsize=256)
def _small(micro_batches: int, stages: int, stage_id: int, overlap: bool) -> Rows:
    steps = tuple(inference_steps(micro_batches, stages, stage_id))
    program = StageProgram.model_construct(stage_id=stage_id, steps=steps, epilogue=())
    return Rows.of((overlapped(program, stages) if overlap else program).steps)
