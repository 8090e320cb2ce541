"""`channel`: does every send meet the receive of the same micro-batch?"""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from schedcc.checks.question import PipelineQuestion
from schedcc.table.channels import Channel, Traffic, channels
from schedcc.table.table import Ints, PlanTable
from schemas import BufferInstruction, Finding, FindingCode, PipelinePlan, Placed


def channels_hold(table: PlanTable) -> bool:
    """Do the k-th send and the k-th receive of every channel name the same micro-batch?

    Of channels that lead to stages which the table is not to hold, only one end is here: they are
    left out.
    """
    send, receive, _ = table.matched
    micro_batch = table.rows.micro_batch
    return (
        2 * len(send) == len(table.inner_transfers)
        and bool((micro_batch[send] == micro_batch[receive]).all())
        and _elsewhere(table, table.rows.peer[table.outer_transfers])
    )


def _elsewhere(table: PlanTable, peers: Ints) -> bool:
    """Whether these are stages of the pipeline, but none that the table is to hold."""
    if len(peers) == 0 or len(table.needed) == table.stages:
        return len(peers) == 0
    in_pipeline = (peers >= 0) & (peers < table.stages)
    return bool(in_pipeline.all()) and not np.isin(peers, list(table.needed)).any()


def check_channels(plan: PipelinePlan) -> Iterator[Finding]:
    """Does the k-th send of every channel name the same micro-batch as its k-th receive?"""
    for channel, traffic in sorted(channels(plan.programs).items()):
        paired = len(traffic.sends) == len(traffic.receives)
        yield from (_swapped if paired else _unmatched)(channel, traffic)


def _unmatched(channel: Channel, traffic: Traffic) -> Iterator[Finding]:
    sends, receives = _micro_batches(traffic.sends), _micro_batches(traffic.receives)
    last_send = dict(zip(sends, traffic.sends, strict=True))
    last_receive = dict(zip(receives, traffic.receives, strict=True))
    for micro_batch, count in sorted((Counter(sends) - Counter(receives)).items()):
        last = last_send[micro_batch]
        yield _finding(
            channel.source,
            last.step,
            f"channel {channel}: micro-batch {micro_batch} is sent {_more(count)} received: "
            f"{last.instruction} waits for a receive that never comes",
        )
    for micro_batch, count in sorted((Counter(receives) - Counter(sends)).items()):
        last = last_receive[micro_batch]
        yield _finding(
            channel.destination,
            last.step,
            f"channel {channel}: micro-batch {micro_batch} is received {_more(count)} sent: "
            f"{last.instruction} waits for a send that never comes",
        )


def _swapped(channel: Channel, traffic: Traffic) -> Iterator[Finding]:
    pairs = zip(traffic.sends, traffic.receives, strict=True)
    for number, (send, receive) in enumerate(pairs, start=1):
        sent, received = _micro_batches([send, receive])
        if sent != received:
            yield _finding(
                channel.destination,
                receive.step,
                f"channel {channel}: transfer {number} sends micro-batch {sent} "
                f"(stage {channel.source}, {send.where}) and receives it as micro-batch {received}",
            )


def _micro_batches(transfers: list[Placed]) -> list[int]:
    instructions = [placed.instruction for placed in transfers]
    return [i.micro_batch for i in instructions if isinstance(i, BufferInstruction)]


def _more(count: int) -> str:
    return "once more than" if count == 1 else f"{count} times more than"


def _finding(stage_id: int, step: int | None, message: str) -> Finding:
    return Finding(code=FindingCode.CHANNEL, stage_id=stage_id, step=step, message=message)


CHANNELS = PipelineQuestion("channels", holds=channels_hold, explain=check_channels)
