"""Passes: from the blocking variant of a program to the overlapped one.

A pass is a pure function from a sound program to a sound program of the same rank. It splits or
moves instructions and does nothing else: micro-batches, buffers, peers and the number of steps
stay. It reads what instructions declare of themselves, never stage numbers, so it works on any
forward plan. Applied a second time it changes nothing.

What they make of stage 1 of M = 4, S = 3 (`r<` and `s>` post a transfer, `r.` and `s.` wait for
it)::

    step                0          1             2                3                4          5
    blocking                    R0 F0      R1 S0 F1         R2 S1 F2         R3 S2 F3        S3
    split_transfers        r<0 r.0 F0  r<1 r.1 s>0 s.0 F1   ...
    hoist_sends            r<0 r.0 F0 s>0  r<1 r.1 s.0 F1 s>1   ...
    hoist_receives  r<0 r<1    r.0 F0 s>0 r<2  r.1 s.0 F1 s>1 r<3   ...
    sink_waits      r<0 r<1    r.0 F0 s>0 r<2  r.1 F1 s>1 r<3  s.0 r.2 F2 s>2 ...

Where the channels of the ranks lead in circles, `hoist_in_order` takes the place of the two others,
unless each channel has a queue of its own (`overlapped_by_channel`).
A receive is posted when its place is free, so its message crosses the previous forward; a send is
posted right after its forward, and nobody waits for it before its place is written again.
"""

from collections.abc import Callable

from schedcc.passes.move import (
    hoist_by_channel,
    hoist_in_order,
    hoist_receives,
    hoist_sends,
    sink_waits,
)
from schedcc.passes.split import split_transfers
from schemas import PlanHeader, RankProgram

Pass = Callable[[RankProgram, PlanHeader], RankProgram]
"""`(program, header of its plan) -> program`"""

PASSES: tuple[Pass, ...] = (
    split_transfers,
    hoist_in_order,
    hoist_sends,
    hoist_receives,
    sink_waits,
)


def overlapped(program: RankProgram, header: PlanHeader) -> RankProgram:
    """The overlapped variant of one rank's blocking program."""
    for transform in PASSES:
        program = transform(program, header)
    return program


def overlapped_by_channel(program: RankProgram, header: PlanHeader) -> RankProgram:
    """The overlapped variant where each channel has a queue of its own; see `hoist_by_channel`.

    Where channels do not lead around in a circle, it is that of `overlapped`.
    """
    return sink_waits(hoist_by_channel(split_transfers(program, header), header), header)


__all__ = [
    "PASSES",
    "Pass",
    "hoist_by_channel",
    "hoist_in_order",
    "hoist_receives",
    "hoist_sends",
    "overlapped",
    "overlapped_by_channel",
    "sink_waits",
    "split_transfers",
]
