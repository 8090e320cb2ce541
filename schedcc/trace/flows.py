"""Flow arrows: from the slice of each send to that of its receive.

A flow event belongs to the slice of its lane that is open at its time. What takes no time has no
slice: then the arrow leaves the slice before the send, and ends in the one behind the receive.
Perfetto reads ids of flows as numbers, and forgets arrows that would go back in time.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from schedcc.trace.slices import Lane, TraceEvent, phase_of
from schemas import Direction, Instruction, Phase, TransferInstruction

_INSIDE = 1e-3
"""Microseconds from the end of a slice, where it is still open."""


@dataclass
class Slices:
    """The slices of one lane, in order."""

    lane: Lane
    times: list[tuple[float, float]] = field(default_factory=list)
    """Start and end of each, in microseconds."""

    def add(self, start: float, end: float) -> None:
        """Note a slice."""
        self.times.append((start, end))


class _End(NamedTuple):
    """One end of a transfer."""

    slices: Slices
    place: int
    """Of its own slice, or of the one behind it."""
    own: bool


class Flows:
    """The transfers between the ranks of one pipeline, in one run: they match by their order."""

    def __init__(self, rank_of: Mapping[int, int]) -> None:
        """No transfers yet; `rank_of`: the rank of each stage."""
        self._rank_of = rank_of
        self._sends: defaultdict[tuple[int, int], list[_End]] = defaultdict(list)
        self._receives: defaultdict[tuple[int, int], list[_End | None]] = defaultdict(list)
        self._posted: dict[tuple[int, int, int], tuple[tuple[int, int], int]] = {}

    def add(self, slices: Slices, instruction: Instruction, *, own: bool) -> None:
        """Note the end of a transfer, if the instruction is one.

        To be called in the order of the rank's program, before its slice is added.
        """
        if not isinstance(instruction, TransferInstruction):
            return
        here = slices.lane.rank
        there = self._rank_of.get(instruction.peer, instruction.peer)
        end = _End(slices, len(slices.times), own)
        phase = phase_of(instruction)
        if instruction.direction is Direction.SEND:
            if phase is not Phase.WAIT:
                self._sends[here, there].append(end)
            return
        value = instruction.stage, instruction.peer, instruction.micro_batch
        if phase is Phase.WAIT:
            channel, number = self._posted.pop(value, (None, 0))
            if channel is not None:
                self._receives[channel][number] = end
            return
        received = self._receives[there, here]
        if phase is Phase.POST:
            self._posted[value] = (there, here), len(received)
        received.append(None if phase is Phase.POST else end)

    def events(self, ids: Iterator[int]) -> Iterator[TraceEvent]:
        """Two events for each arrow, with an id that no other has."""
        for channel, sends in self._sends.items():
            for send, receive in zip(sends, self._receives[channel], strict=False):
                found = None if receive is None else _arrow(send, receive)
                if found is None or receive is None:
                    continue
                about = {"id": next(ids), "name": "activation", "cat": "transfer"}
                yield send.slices.lane.event("s", found[0], **about)
                yield receive.slices.lane.event("f", found[1], bp="e", **about)


def _arrow(send: _End, receive: _End) -> tuple[float, float] | None:
    """When an arrow leaves and when it ends, in microseconds; `None`: there is no slice for it."""
    before, behind = send.slices.times, receive.slices.times
    out = send.place if send.own else send.place - 1
    if not 0 <= out < len(before) or receive.place >= len(behind):
        return None
    start, end = before[out]
    left = start if send.own else max(start, end - _INSIDE)
    start, end = behind[receive.place]
    if not receive.own:
        return (left, start) if left <= start else None
    arrived = max(start, end - _INSIDE, min(left, end))
    return (left, arrived) if left <= arrived else None
