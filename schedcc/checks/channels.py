"""`channel`: does every send meet the receive of the same micro-batch?"""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from schedcc.checks.question import PipelineQuestion, finding
from schedcc.table.channels import Channel, Traffic, channels
from schedcc.table.table import PlanTable
from schemas import (
    Direction,
    Finding,
    FindingCode,
    PipelinePlan,
    Placed,
    TransferInstruction,
)


def channels_hold(table: PlanTable) -> bool:
    """Do the k-th send and receive of every channel name the same stages and micro-batch?"""
    send, receive, _ = table.matched
    rows = table.rows
    return (
        2 * len(send) == len(table.transfers)
        and bool((rows.micro_batch[send] == rows.micro_batch[receive]).all())
        and bool((rows.stage[send] == rows.peer[receive]).all())
        and bool((rows.peer[send] == rows.stage[receive]).all())
    )


def check_channels(plan: PipelinePlan) -> Iterator[Finding]:
    """Does the k-th send of every channel name the same stages and micro-batch as its k-th receive?

    A channel is an ordered pair of ranks, which may carry what several of their stages exchange.
    """
    for channel, traffic in sorted(channels(plan).items()):
        paired = len(traffic.sends) == len(traffic.receives)
        yield from (_swapped if paired else _unmatched)(plan, channel, traffic)


class _Message(NamedTuple):
    """What one end of a transfer says that it moves."""

    source: int
    destination: int
    micro_batch: int

    @classmethod
    def of(cls, placed: Placed) -> "_Message":
        transfer = placed.instruction
        assert isinstance(transfer, TransferInstruction)
        ends = (transfer.stage, transfer.peer)
        source, destination = ends if transfer.direction is Direction.SEND else ends[::-1]
        return cls(source, destination, transfer.micro_batch)

    def words(self, plan: PipelinePlan) -> str:
        """The micro-batch, and the stages where the ranks do not tell them."""
        stages = "" if plan.is_one_to_one else f" from stage {self.source} to {self.destination}"
        return f"micro-batch {self.micro_batch}{stages}"


def _unmatched(plan: PipelinePlan, channel: Channel, traffic: Traffic) -> Iterator[Finding]:
    sends, receives = ([*map(_Message.of, end)] for end in (traffic.sends, traffic.receives))
    last_send = dict(zip(sends, traffic.sends, strict=True))
    last_receive = dict(zip(receives, traffic.receives, strict=True))
    for message, count in sorted((Counter(sends) - Counter(receives)).items()):
        last = last_send[message]
        yield _finding(
            plan,
            channel.source,
            last,
            f"channel {channel}: {message.words(plan)} is sent {_more(count)} received: "
            f"{last.instruction} waits for a receive that never comes",
        )
    for message, count in sorted((Counter(receives) - Counter(sends)).items()):
        last = last_receive[message]
        yield _finding(
            plan,
            channel.destination,
            last,
            f"channel {channel}: {message.words(plan)} is received {_more(count)} sent: "
            f"{last.instruction} waits for a send that never comes",
        )


def _swapped(plan: PipelinePlan, channel: Channel, traffic: Traffic) -> Iterator[Finding]:
    pairs = zip(traffic.sends, traffic.receives, strict=True)
    for number, (send, receive) in enumerate(pairs, start=1):
        sent, received = _Message.of(send), _Message.of(receive)
        if sent != received:
            yield _finding(
                plan,
                channel.destination,
                receive,
                f"channel {channel}: transfer {number} sends {sent.words(plan)} "
                f"({plan.unit} {channel.source}, {send.where}) and receives it as "
                f"{received.words(plan)}",
            )


def _more(count: int) -> str:
    return "once more than" if count == 1 else f"{count} times more than"


def _finding(plan: PipelinePlan, rank: int, placed: Placed, message: str) -> Finding:
    assert isinstance(placed.instruction, TransferInstruction)
    stage_id = placed.instruction.stage
    return finding(FindingCode.CHANNEL, plan, rank, message, stage_id=stage_id, step=placed.step)


CHANNELS = PipelineQuestion("channels", holds=channels_hold, explain=check_channels)
