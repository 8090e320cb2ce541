"""Emulated links and queues per channel: when transfers end is computed, not waited for."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.testing import DeadlockError, InMemoryTransport, Link, run_threads
from runtime.testing.network import Operation
from tests.runtime.evaluation.test_evaluator import eval_batch
from tests.support.models_for_tests import batches, mlp, one_process, over_stages

LINK = Link(seconds=1 / 64, bytes_per_second=1024.0)
"""A message of 8 bytes takes 3/128 seconds, which is exact in binary."""
DURATION = 3 / 128
MESSAGE = torch.arange(8, dtype=torch.uint8)


def started(send: Operation, receive: Operation) -> float:
    """When a transfer could start, were its queues empty."""
    return max(send.posted, receive.posted)


def over_links(stages: int, stage: Any, queue: Any = "stage") -> list[Any]:
    return run_threads(stages, stage, queue=queue, link=LINK, timeout=30)


def test_a_message_travels_for_latency_and_size():
    assert LINK.duration(8) == DURATION
    assert Link().duration(10**9) == 0.0

    def stage(end: InMemoryTransport) -> Any:
        if end.rank == 0:
            operation = end.post_send([MESSAGE], 1)
            end.wait(operation)
            return operation
        place = torch.zeros(8, dtype=torch.uint8)
        operation = end.post_receive([place], 0)
        end.wait(operation)
        assert torch.equal(place, MESSAGE)
        return operation

    send, receive = over_links(2, stage)
    assert send.ends == receive.ends == started(send, receive) + DURATION


def both_ways(end: InMemoryTransport) -> list[Any]:
    """Rank 1 receives from rank 0 and sends to rank 2, posted one after the other."""
    operations = []
    if end.rank == 0:
        operations = [end.post_send([MESSAGE], 1)]
    elif end.rank == 2:
        operations = [end.post_receive([torch.zeros_like(MESSAGE)], 1)]
    else:
        receive = end.post_receive([torch.zeros_like(MESSAGE)], 0)
        operations = [receive, end.post_send([MESSAGE], 2)]
    for operation in operations:
        end.wait(operation)
    return operations


def test_transfers_of_a_stage_follow_each_other_in_one_queue():
    (send_0,), (receive_1, send_1), (receive_2,) = over_links(3, both_ways)
    assert receive_1.ends == started(send_0, receive_1) + DURATION
    assert send_1.ends == receive_2.ends == max(receive_1.ends, receive_2.posted) + DURATION


def test_channels_with_queues_of_their_own_do_not_wait_for_each_other():
    (send_0,), (receive_1, send_1), (receive_2,) = over_links(3, both_ways, "channel")
    assert receive_1.ends == started(send_0, receive_1) + DURATION
    assert send_1.ends == started(send_1, receive_2) + DURATION


def test_messages_of_one_channel_follow_each_other_whatever_the_queues():
    def stage(end: InMemoryTransport) -> list[Any]:
        here = end.rank
        operations = [
            end.post_send([MESSAGE], 1)
            if here == 0
            else end.post_receive([torch.zeros_like(MESSAGE)], 0)
            for _ in range(3)
        ]
        for operation in operations:
            end.wait(operation)
        return operations

    sends, receives = over_links(2, stage, "channel")
    free = 0.0
    for send, receive in zip(sends, receives, strict=True):
        free = max(free, started(send, receive)) + DURATION
        assert send.ends == receive.ends == free


def test_what_comes_after_a_group_waits_for_its_slowest_member():
    def stage(end: InMemoryTransport) -> list[Any]:
        other, place = 1 - end.rank, torch.zeros_like(MESSAGE)
        end.start_group()
        group = [end.post_send([MESSAGE], other), end.post_receive([place], other)]
        end.end_group()
        after = (
            end.post_send([MESSAGE], other)
            if end.rank == 0
            else end.post_receive([torch.zeros_like(MESSAGE)], other)
        )
        for operation in [*group, after]:
            end.wait(operation)
        return [*group, after]

    here, there = over_links(2, stage)
    assert here[0].ends == here[1].ends == started(here[0], there[0]) + DURATION
    assert here[2].ends == max(here[0].ends, started(here[2], there[2])) + DURATION


def post_receive_then_send(end: InMemoryTransport) -> list[int]:
    other, place = 1 - end.rank, torch.zeros_like(MESSAGE)
    receive = end.post_receive([place], other)
    end.wait(end.post_send([MESSAGE], other))
    end.wait(receive)
    return place.tolist()


def test_an_early_receive_holds_up_the_send_behind_it_in_one_queue_only():
    with pytest.raises(DeadlockError, match="waits in send to 1, behind receive from 1"):
        over_links(2, post_receive_then_send)
    assert over_links(2, post_receive_then_send, "channel") == [MESSAGE.tolist()] * 2


def test_deadlocks_are_still_seen_when_every_channel_has_its_queue():
    def stage(end: InMemoryTransport) -> None:
        end.wait(end.post_send([MESSAGE], 1 - end.rank))

    with pytest.raises(DeadlockError, match="rank 0 waits in send to 1, behind nothing"):
        over_links(2, stage, "channel")


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    stages=st.integers(1, 4),
    overlap=st.sampled_from([False, True, "auto"]),
    queue=st.sampled_from(["stage", "channel"]),
)
@settings(max_examples=15)
def test_results_do_not_depend_on_links_queues_or_forms(sizes, stages, overlap, queue):
    data = batches(sizes)
    logits, losses = one_process(mlp(), data)
    results = over_stages(
        stages,
        lambda ev: eval_batch(ev, data, return_logits=True),
        overlap=overlap,
        network={"queue": queue, "link": Link(seconds=1e-4)},
    )
    assert all(result.losses == tuple(losses) for result in results)
    assert all(torch.equal(a, b) for a, b in zip(results[-1].logits, logits, strict=True))
