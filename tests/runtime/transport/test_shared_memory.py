"""Channels through shared memory: what arrives, when a send ends, and how waits are ended."""

import gc
import os
import random
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.transport.shared_memory import sender as sending_module
from runtime.transport.shared_memory.endpoint import LocalChannelError, UnfinishedSends
from runtime.transport.shared_memory.receiver import ReceivingEnd
from runtime.transport.shared_memory.segments import SharedMemory, supported
from runtime.transport.shared_memory.sender import LARGE, SendingEnd
from runtime.transport.shared_memory.wire_format import ReceiveDescriptor

pytestmark = pytest.mark.skipif(not supported(), reason="needs memfd_create(2)")

SOON = timedelta(seconds=30)


class Pair:
    """Both ends of a channel, in one process."""

    def __init__(self, timeout: timedelta = SOON, progress: UnfinishedSends | None = None) -> None:
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.memory = SharedMemory()
        self.sending = SendingEnd(one, timeout, progress or UnfinishedSends())
        self.receiving = ReceivingEnd(other, timeout, UnfinishedSends(), self.memory)

    def place(self, nbytes: int) -> torch.Tensor:
        """Shared memory to receive into."""
        return self.memory.allocate(nbytes)


def message(*sizes: int) -> list[torch.Tensor]:
    return [torch.randint(0, 256, (size,), dtype=torch.uint8) for size in sizes]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def descriptors_before() -> int:
    """Without those that earlier tests have left in cycles, which might be closed meanwhile."""
    gc.collect()
    return descriptors()


def test_a_message_is_written_where_its_receive_was_posted():
    pair, (payload,) = Pair(), message(1000)
    place = pair.place(4000)
    received = pair.receiving.begin([place[64:1064]])
    pair.sending.begin([payload]).wait()
    received.wait()
    assert torch.equal(place[64:1064], payload)
    assert not place[:64].any()
    assert not place[1064:].any()


@pytest.mark.parametrize("size", [10, LARGE])
def test_a_send_ends_when_its_receive_has_been_posted(size):
    pair, payload = Pair(), message(size)
    sent = pair.sending.begin(payload)
    ended = threading.Event()

    def wait() -> None:
        sent.wait()
        ended.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert not ended.wait(0.1)
    place = [pair.place(size)]
    pair.receiving.begin(place).wait()
    waiting.join(SOON.total_seconds())
    assert ended.is_set()
    assert torch.equal(place[0], payload[0])


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(1, 300), max_size=3),
            st.booleans(),
            st.sampled_from([0, 0, 0, LARGE]),
        ),
        max_size=12,
    ),
    st.randoms(use_true_random=False),
)
def test_messages_of_any_sizes_arrive_in_order(drawn: list[Any], chance: random.Random):
    pair = Pair()
    payloads = [message(*(n + more for n in sizes)) for sizes, _, more in drawn]
    places = [
        [pair.place(p.numel()) if len(payload) == 1 and shared else torch.zeros_like(p)
         for p in payload]
        for payload, (_, shared, _) in zip(payloads, drawn, strict=True)
    ]  # fmt: skip
    sent: list[Any] = []
    received: list[Any] = []
    while len(sent) + len(received) < 2 * len(payloads):
        if len(received) == len(payloads) or (len(sent) < len(payloads) and chance.random() < 0.5):
            sent.append(pair.sending.begin(payloads[len(sent)]))
        else:
            received.append(pair.receiving.begin(places[len(received)]))
    for one in sent:
        one.wait()
    for one in chance.sample(received, len(received)):
        one.wait()
    for payload, place in zip(payloads, places, strict=True):
        assert all(map(torch.equal, payload, place))
    pair.sending.close()
    pair.receiving.close()


def test_a_message_of_another_size_is_refused_where_it_is_sent():
    pair = Pair()
    pair.receiving.begin([pair.place(3)])
    sent = pair.sending.begin(message(4))
    with pytest.raises(LocalChannelError, match=r"\[4\] bytes sent, but the peer receives \[3\]"):
        sent.wait()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("size", [10, LARGE])
def test_a_joined_message_lies_at_the_beginning_of_its_place(size, shared):
    pair, payload = Pair(), message(7, size, 0, 3)
    place = pair.place(2 * LARGE) if shared else torch.zeros(2 * LARGE, dtype=torch.uint8)
    received = pair.receiving.begin([place], joined=True)
    pair.sending.begin(payload, joined=True).wait()
    received.wait()
    assert torch.equal(place[: 10 + size], torch.cat(payload))
    assert not place[10 + size :].any()


@pytest.mark.parametrize(
    ("sent_joined", "received_joined", "room", "expected"),
    [
        (True, True, 3, r"\[4\] bytes sent, but the peer receives joined into at most \[3\]"),
        (False, True, 4, r"\[4\] bytes sent, but the peer receives joined into at most \[4\]"),
        (True, False, 4, r"\[4\] bytes sent joined, but the peer receives \[4\]"),
    ],
)
def test_a_joined_message_is_refused_where_its_receive_is_another_one(
    sent_joined, received_joined, room, expected
):
    pair = Pair()
    pair.receiving.begin([pair.place(room)], joined=received_joined)
    sent = pair.sending.begin(message(4), joined=sent_joined)
    with pytest.raises(LocalChannelError, match=expected):
        sent.wait()


@pytest.mark.parametrize("size", [10, LARGE])
def test_what_goes_wrong_in_writing_is_told(size, monkeypatch):
    def write(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sending_module, "write", write)
    pair = Pair()
    pair.receiving.begin([pair.place(size)])
    with pytest.raises(LocalChannelError, match=r"OSError: .*No space left on device"):
        pair.sending.begin(message(size)).wait()


def test_a_message_of_too_many_tensors_is_refused_where_it_is_received():
    with pytest.raises(LocalChannelError, match="a message of 5000 tensors is too long"):
        Pair().receiving.begin([torch.empty(1, dtype=torch.uint8)] * 5000)


@pytest.mark.parametrize("size", [10, LARGE])
@pytest.mark.parametrize("end", ["sending", "receiving"])
def test_any_thread_can_end_the_waits_of_both_sides(size, end):
    pair = Pair()
    sent = pair.sending.begin(message(size))
    other = Pair()
    received = other.receiving.begin([torch.empty(size, dtype=torch.uint8)])
    shut = [getattr(pair, end), getattr(other, end)]
    threading.Timer(0.05, lambda: [one.shut() for one in shut]).start()
    for waiting in (sent, received):
        with pytest.raises(LocalChannelError, match="connection closed by peer"):
            waiting.wait()


@pytest.mark.parametrize("size", [10, LARGE])
def test_a_wait_takes_no_longer_than_the_timeout(size):
    pair = Pair(timedelta(milliseconds=50))
    with pytest.raises(LocalChannelError, match=r"no answer in 0\.05 s"):
        pair.sending.begin(message(size)).wait()
    with pytest.raises(LocalChannelError, match=r"no answer in 0\.05 s"):
        pair.receiving.begin([pair.place(size)]).wait()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_does_not_keep_a_connection_open():
    pair = Pair()
    release, hold = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(hold)
        os.read(release, 1)  # until the parent closes its end
        os._exit(0)
    try:
        sent = pair.sending.begin(message(1))
        pair.receiving.connection.close()  # as the end of its process would
        with pytest.raises(LocalChannelError, match="connection closed by peer"):
            sent.wait()
    finally:
        os.close(hold)
        os.close(release)
        os.waitpid(child, 0)


def test_what_is_not_used_any_more_is_given_back_on_both_sides():
    pair = Pair()
    counts = []
    for size in range(10, 30):
        place = [pair.place(size)]
        received = pair.receiving.begin(place)
        pair.sending.begin(message(size)).wait()
        received.wait()
        counts.append(descriptors())
    assert counts[-1] <= counts[0] + 2, counts
    pair.sending.close()
    pair.receiving.close()
    assert descriptors() <= counts[-1] - 2


def test_memory_that_is_kept_costs_no_descriptor_once_it_is_released():
    pair = Pair()
    kept, contents, counts = [], [], []
    for size in range(10, 30):
        place, payload = pair.place(size), message(size)
        received = pair.receiving.begin([place])
        pair.sending.begin(payload).wait()
        received.wait()
        pair.memory.release(place)
        kept.append(place[2:])
        contents.append(payload[0][2:])
        counts.append(descriptors())
    assert counts[-1] <= counts[0] + 1, counts
    assert all(map(torch.equal, kept, contents)), "what is kept stays as it was"
    before = pair.memory.released
    del kept
    assert pair.memory.released == before, "a segment is forgotten once"


def test_what_was_released_is_no_place_to_receive_into_but_a_message_still_arrives_there():
    pair, payload = Pair(), message(8)
    place = pair.place(8)
    pair.memory.release(place)
    pair.memory.release(place)
    pair.memory.release(torch.zeros(3))
    assert pair.memory.extent([place]) is None
    received = pair.receiving.begin([place])
    pair.sending.begin(payload).wait()
    received.wait()
    assert torch.equal(place, payload[0])


def test_a_segment_costs_one_descriptor_and_one_that_cannot_be_mapped_none(monkeypatch):
    memory = SharedMemory()
    before = descriptors_before()
    place = memory.allocate(1000)
    assert descriptors() == before + 1
    del place
    assert descriptors() == before

    def no_room(*_: object, **__: object) -> None:
        raise RuntimeError("unable to mmap 1000 bytes: Cannot allocate memory (12)")

    monkeypatch.setattr(torch, "from_file", no_room)
    with pytest.raises(MemoryError, match="1000 bytes of shared memory cannot be mapped"):
        memory.allocate(1000)
    assert descriptors() == before


def test_a_stage_that_waits_looks_after_its_other_sends():
    """Each of two stages posts a send before the other receives, and then waits for a receive."""

    def stage(into: ReceivingEnd, out: SendingEnd, posts: Callable[[], None]) -> torch.Tensor:
        sent = out.begin(message(8))
        posts()
        place = torch.zeros(8, dtype=torch.uint8)
        into.begin([place]).wait()
        sent.wait()
        return place

    one, other = UnfinishedSends(), UnfinishedSends()
    there, back = Pair(progress=one), Pair(progress=other)
    there.receiving.progress, back.receiving.progress = other, one
    barrier = threading.Barrier(2)

    def posts() -> None:
        barrier.wait(SOON.total_seconds())

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(stage, back.receiving, there.sending, posts)
        second = pool.submit(stage, there.receiving, back.sending, posts)
        assert first.result(SOON.total_seconds()).any()
        assert second.result(SOON.total_seconds()).any()


def test_sends_go_on_while_a_stage_waits_elsewhere():
    progress = UnfinishedSends()
    pair = Pair(progress=progress)
    payload = message(8)
    pair.sending.begin(payload)
    progress.delegate()
    place = pair.place(8)
    pair.receiving.begin([place]).wait()
    assert torch.equal(place, payload[0])


def test_receive_descriptors_are_what_they_were():
    for joined in (False, True):
        posted = ReceiveDescriptor(7, [(0, 5), (64, 2**33)], [1, 2], joined)
        assert ReceiveDescriptor.unpacked(memoryview(posted.packed())) == posted


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        ReceiveDescriptor(1, [(0, 4)]).packed()[:-1],
        ReceiveDescriptor(1, [(0, 4)], gone=[7]).packed(),
        ReceiveDescriptor(1, [], joined=True).packed(),
    ],
)
def test_a_damaged_receive_descriptor_is_told_and_leaves_no_descriptor(data):
    before = descriptors_before()
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sending, segment = SendingEnd(one, SOON, UnfinishedSends()), os.memfd_create("test")
    socket.send_fds(other, [data], [segment])
    with pytest.raises(
        LocalChannelError, match=f"receive descriptor of {len(data)} bytes is damag"
    ):
        sending.begin(message(4)).wait()
    sending.close()
    other.close()
    os.close(segment)
    assert descriptors() == before


def test_a_segment_that_is_not_known_comes_with_its_descriptor():
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    other.send(ReceiveDescriptor(5, [(0, 4)]).packed())
    with pytest.raises(LocalChannelError, match="is damaged"):
        SendingEnd(one, SOON, UnfinishedSends()).begin(message(4)).wait()
