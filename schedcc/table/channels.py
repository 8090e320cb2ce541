"""Channels: the ordered pairs of ranks between which activations travel.

Transports match messages by order: the k-th send of a channel meets its k-th receive, whatever
stages and micro-batches the two name.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeGuard

from schemas import (
    Direction,
    EpilogueInstruction,
    HandOver,
    Instruction,
    Phase,
    PipelinePlan,
    Placed,
    Transfer,
    TransferInstruction,
)


class Channel(NamedTuple):
    """From one rank to another."""

    source: int
    destination: int

    def __str__(self) -> str:
        return f"{self.source}->{self.destination}"


@dataclass
class Traffic:
    """What the two ends of a channel issue, in order."""

    sends: list[Placed] = field(default_factory=list)
    receives: list[Placed] = field(default_factory=list)


def is_transfer(instruction: Instruction) -> TypeGuard[Transfer]:
    """Whether an instruction moves an activation: whole, or by posting it.

    A split transfer is represented by its post: that is where it joins the rank's queue.
    """
    return (
        isinstance(instruction, TransferInstruction) and instruction.effects.phase is not Phase.WAIT
    )


def channels(plan: PipelinePlan) -> dict[Channel, Traffic]:
    """All channels that a plan uses, with the transfers of both ends in the order of issue."""
    traffic: defaultdict[Channel, Traffic] = defaultdict(Traffic)
    for program in plan.programs:
        for placed in program.placed():
            instruction = placed.instruction
            if not is_transfer(instruction):
                continue
            peer = plan.rank_of(instruction.peer)
            if instruction.direction is Direction.SEND:
                traffic[Channel(program.rank, peer)].sends.append(placed)
            else:
                traffic[Channel(peer, program.rank)].receives.append(placed)
    return dict(traffic)


def collectives(epilogue: Iterable[EpilogueInstruction]) -> list[HandOver]:
    """What a rank executes together with others of its pipeline, in order.

    Among the same members (`HandOver.members`), these too match by order.
    """
    return [instruction for instruction in epilogue if isinstance(instruction, HandOver)]
