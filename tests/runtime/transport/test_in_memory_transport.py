"""The in-memory transport is stricter than any real one, and says who waits for whom."""

import pytest
import torch

from runtime.testing import DeadlockError, InMemoryTransport, run_threads
from runtime.transport import TransportError


def send(end: InMemoryTransport, peer: int, *values: float) -> None:
    end.wait(end.post_send([torch.tensor(values)], peer))


def receive(end: InMemoryTransport, peer: int, size: int = 1) -> list[float]:
    place = torch.zeros(size)
    end.wait(end.post_receive([place], peer))
    return place.tolist()


def test_two_stages_that_both_send_first_are_reported_as_a_deadlock():
    def stage(end: InMemoryTransport) -> None:
        send(end, 1 - end.rank, 1.0)
        receive(end, 1 - end.rank)

    with pytest.raises(DeadlockError, match="no rank can go on") as caught:
        run_threads(2, stage, timeout=20)
    assert "rank 0 waits in send to 1, behind nothing" in str(caught.value)
    assert "rank 1 waits in send to 0, behind nothing" in str(caught.value)


def test_what_is_posted_after_a_group_waits_for_all_of_it():
    def stage(end: InMemoryTransport) -> None:
        if end.rank == 0:
            end.start_group()
            receive_ = end.post_receive([torch.zeros(1)], 1)
            end.end_group()
            send(end, 1, 1.0)
            end.wait(receive_)
        else:
            receive(end, 0)
            send(end, 0, 1.0)

    with pytest.raises(DeadlockError, match="rank 0 waits in send to 1, behind receive from 1"):
        run_threads(2, stage, timeout=20)


def test_a_posted_receive_holds_up_the_send_behind_it():
    def stage(end: InMemoryTransport) -> None:
        place = torch.zeros(1)
        posted = end.post_receive([place], 1 - end.rank)
        send(end, 1 - end.rank, 1.0)
        end.wait(posted)

    with pytest.raises(DeadlockError, match="waits in send to 1, behind receive from 1"):
        run_threads(2, stage, timeout=20)


def test_a_stage_that_ends_early_leaves_nobody_waiting():
    def stage(end: InMemoryTransport) -> None:
        if end.rank == 1:
            receive(end, 0)

    with pytest.raises(DeadlockError, match="finished: \\[0\\]"):
        run_threads(2, stage, timeout=20)


def test_the_error_of_one_stage_ends_the_others_and_is_the_one_raised():
    def stage(end: InMemoryTransport) -> None:
        if end.rank == 2:
            raise LookupError("the origin")
        receive(end, 2)

    with pytest.raises(LookupError, match="the origin"):
        run_threads(3, stage, timeout=20)


def test_a_received_message_is_not_there_before_its_wait():
    def stage(end: InMemoryTransport) -> tuple[bool, float]:
        if end.rank == 0:
            send(end, 1, 7.0)
            return True, 7.0
        place = torch.ones(1)
        posted = end.post_receive([place], 0)
        early = bool(place.isnan())
        end.wait(posted)
        return early, float(place)

    assert run_threads(2, stage) == [(True, 7.0), (True, 7.0)]


def test_a_payload_that_changes_in_flight_is_an_error():
    def stage(end: InMemoryTransport) -> None:
        if end.rank == 0:
            payload = torch.tensor([1.0])
            posted = end.post_send([payload], 1)
            payload += 1
            end.wait(posted)
        else:
            receive(end, 0)

    with pytest.raises(TransportError, match="payload changed during send to 1"):
        run_threads(2, stage, timeout=20)


def test_a_place_that_is_written_in_flight_is_an_error():
    def stage(end: InMemoryTransport) -> None:
        if end.rank == 0:
            send(end, 1, 1.0)
        else:
            place = torch.zeros(1)
            posted = end.post_receive([place], 0)
            place += 1.0
            place.fill_(5.0)
            end.wait(posted)

    with pytest.raises(TransportError, match="place written during receive from 0"):
        run_threads(2, stage, timeout=20)


def test_sizes_that_differ_are_an_error_on_both_ends():
    def stage(end: InMemoryTransport) -> None:
        if end.rank == 0:
            send(end, 1, 1.0, 2.0)
        else:
            receive(end, 0)

    expected = r"rank 0 sends \[8\] bytes to rank 1, which receives \[4\]"
    with pytest.raises(TransportError, match=expected):
        run_threads(2, stage, timeout=20)


def test_a_joined_message_may_be_shorter_than_its_place():
    def stage(end: InMemoryTransport) -> list[float]:
        if end.rank == 0:
            end.wait(end.post_send([torch.ones(2), torch.zeros(1)], 1, joined=True))
            return []
        place = torch.zeros(4)
        posted = end.post_receive([place], 0, joined=True)
        assert place.isnan().all()
        end.wait(posted)
        assert place[3:].isnan().all(), "nothing was received there"
        return place[:3].tolist()

    assert run_threads(2, stage, timeout=20)[1] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("sent_joined", "received_joined", "size", "expected"),
    [
        (
            True,
            True,
            1,
            r"sends \[8\] bytes joined to rank 1, which receives joined into at most \[4\]",
        ),
        (True, False, 2, r"sends \[8\] bytes joined to rank 1, which receives \[8\]"),
        (False, True, 2, r"sends \[8\] bytes to rank 1, which receives joined into at most \[8\]"),
    ],
)
def test_both_ends_have_to_join_a_message_and_it_has_to_fit(
    sent_joined, received_joined, size, expected
):
    def stage(end: InMemoryTransport) -> None:
        if end.rank == 0:
            end.wait(end.post_send([torch.ones(2)], 1, joined=sent_joined))
        else:
            end.wait(end.post_receive([torch.ones(size)], 0, joined=received_joined))

    with pytest.raises(TransportError, match=expected):
        run_threads(2, stage, timeout=20)


def test_a_transfer_is_waited_for_once():
    def stage(end: InMemoryTransport) -> None:
        if end.rank == 0:
            posted = end.post_send([torch.ones(1)], 1)
            end.wait(posted)
            end.wait(posted)
        else:
            receive(end, 0)

    with pytest.raises(TransportError, match="send to 1 is waited for a second time"):
        run_threads(2, stage, timeout=20)


def test_collectives_reach_all_stages_and_replicas():
    def stage(end: InMemoryTransport) -> tuple[float, list[int], list[int]]:
        loss = torch.tensor([float(end.global_rank)])
        end.broadcast(loss, source=2)
        return (
            float(loss),
            end.gather_from_replicas(end.global_rank),
            end.gather_objects(end.global_rank),
        )

    results = run_threads(3, stage, replicas=2)
    assert [loss for loss, _, _ in results] == [2.0] * 3 + [5.0] * 3
    assert [ranks for _, ranks, _ in results] == [[0, 3], [1, 4], [2, 5]] * 2
    assert [ranks for _, _, ranks in results] == [[0, 1, 2]] * 3 + [[3, 4, 5]] * 3


def test_a_rank_that_waits_too_long_is_given_up():
    import threading

    release = threading.Event()
    with pytest.raises(TimeoutError, match="1 ranks still run after"):
        run_threads(1, lambda _: release.wait(30), timeout=0.05)
    release.set()
