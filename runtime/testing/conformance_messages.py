"""Cases of conformance: messages, groups and collective operations."""

from collections.abc import Sequence

import torch

from runtime.transport.control_messages import receive_object, send_object
from runtime.transport.protocol import Transport, TransportError

DTYPES = (
    *(torch.bool, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.complex128),
)
SIZES = (1, 1000, 256 * 1024 - 1, 256 * 1024, 3, 4 * 2**20, 65)
"""Bytes of messages: below and above what transports treat differently."""

OBJECT_SIZES = (0, 10, 1016, 1017, 4088, 4089, 100_000)
"""Bytes of objects: likewise."""


def each_end_knows_its_place(end: Transport) -> None:
    """Ranks are numbered from 0, and each is where the others think it is."""
    assert end.generation == 0
    assert end.usable
    assert 0 <= end.rank < end.ranks
    assert 0 <= end.replica < end.replicas
    assert end.gather_objects(end.rank) == list(range(end.ranks))
    assert len(set(end.gather_objects(end.global_rank))) == end.ranks
    assert end.gather_from_replicas(end.replica) == list(range(end.replicas))
    assert (end.rendezvous is None) == (end.ranks * end.replicas == 1)


def objects_of_any_size_are_gathered_by_rank(end: Transport) -> None:
    """Also where those of the ranks are of different sizes."""
    for size in OBJECT_SIZES:
        expected = [(rank, b"x" * (size * rank)) for rank in range(end.ranks)]
        assert end.gather_objects(expected[end.rank]) == expected
    assert end.gather_objects(None) == [None] * end.ranks


def a_broadcast_overwrites_the_tensor_of_every_rank(end: Transport) -> None:
    """From any rank; tensors of any size."""
    for source in range(end.ranks):
        for size in (1, 300_000):
            tensor = torch.full((size,), float(end.rank), device=end.device)
            end.broadcast(tensor, source)
            assert (tensor.cpu() == source).all()


def an_empty_group_is_nothing(end: Transport) -> None:
    """A group in which nothing is posted begins and ends."""
    end.start_group()
    end.end_group()
    assert end.gather_objects(1) == [1] * end.ranks


def messages_of_a_channel_arrive_in_order(end: Transport) -> None:
    """Along the whole pipeline, each rank handing on what it received."""
    last = end.ranks - 1
    for number in range(20):
        tensor = torch.full((1 + number % 3,), number, dtype=torch.int32, device=end.device)
        if end.rank > 0:
            place = torch.zeros_like(tensor)
            end.wait(end.post_receive([place], end.rank - 1))
            require_equal([place], [tensor])
        if end.rank < last:
            end.wait(end.post_send([tensor], end.rank + 1))


def tensors_of_every_dtype_arrive_as_they_were(end: Transport) -> None:
    """In one message, with tensors that are empty or have no dimension; and a message of none."""
    bits = torch.arange(48, dtype=torch.uint8) % 2
    sent = [bits.clone().view(dtype).to(end.device) for dtype in DTYPES]
    sent += [torch.zeros(0, 3, device=end.device), torch.tensor(2.5, device=end.device)]
    for message in (sent, [torch.zeros(0, device=end.device)], []):
        if end.rank == 0:
            end.wait(end.post_send(message, 1))
        elif end.rank == 1:
            places = [torch.empty_like(tensor) for tensor in message]
            end.wait(end.post_receive(places, 0))
            require_equal(places, message)


def small_and_large_messages_follow_each_other(end: Transport) -> None:
    """There and back, alone and two at a time."""
    for size, other in zip(SIZES, SIZES[1:] + SIZES[:1], strict=True):
        message = [numbers(size, end.device), numbers(other, end.device)]
        for source in (0, 1):
            for part in (message, message[:1]):
                if end.rank == source:
                    end.wait(end.post_send(part, 1 - source))
                elif end.rank == 1 - source:
                    places = [torch.zeros_like(tensor) for tensor in part]
                    end.wait(end.post_receive(places, source))
                    require_equal(places, part)


def receive_memory_keeps_its_contents_when_it_is_released(end: Transport) -> None:
    """Messages come into parts of it, and nothing beside them changes."""
    kept, sizes = [], (100, 300_000)
    for size in sizes:
        message = numbers(size, end.device)
        if end.rank == 0:
            end.wait(end.post_send([message], 1))
        elif end.rank == 1:
            memory = end.receive_memory(size + 128)
            memory.fill_(7)
            end.wait(end.post_receive([memory[64 : 64 + size]], 0))
            end.release_memory(memory)
            kept.append(memory)
    for size, memory in zip(sizes, kept, strict=False):
        require_equal([memory[64 : 64 + size]], [numbers(size, end.device)])
        assert (memory[:64].cpu() == 7).all()
        assert (memory[64 + size :].cpu() == 7).all()


def members_of_a_group_do_not_wait_for_each_other(end: Transport) -> None:
    """Two ranks that both send first, and receive first, within one group each."""
    if end.rank > 1:
        return
    other = 1 - end.rank
    places = [torch.zeros(size, dtype=torch.uint8, device=end.device) for size in (8, 400_000)]
    sent = [torch.full_like(place, 3 + end.rank) for place in places]
    end.start_group()
    pending = [
        end.post_send([sent[0]], other),
        end.post_receive([places[0]], other),
        end.post_receive([places[1]], other),
        end.post_send([sent[1]], other),
    ]
    end.end_group()
    for transfer in pending:
        end.wait(transfer)
    require_equal(places, [torch.full_like(place, 3 + other) for place in places])


def a_group_may_be_a_ring(end: Transport) -> None:
    """Every rank sends to the next and receives from the one before, at the same time."""
    before, after = (end.rank - 1) % end.ranks, (end.rank + 1) % end.ranks
    for size in (16, 500_000):
        place = torch.zeros(size, dtype=torch.uint8, device=end.device)
        end.start_group()
        sending = end.post_send([torch.full_like(place, end.rank)], after)
        receiving = end.post_receive([place], before)
        end.end_group()
        end.wait(receiving)
        end.wait(sending)
        require_equal([place], [torch.full_like(place, before)])


def transfers_are_waited_for_in_any_order(end: Transport) -> None:
    """What was posted last may be waited for first."""
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        messages = [numbers(10 + n, end.device) + n for n in range(3)]
        places = [torch.zeros_like(message) for message in messages]
        if end.rank == 0:
            pending = [end.post_send([message], 1) for message in messages]
        elif end.rank == 1:
            pending = [end.post_receive([place], 0) for place in places]
        else:
            return
        for number in order:
            end.wait(pending[number])
        if end.rank == 1:
            require_equal(places, messages)


def collectives_may_come_between_post_and_wait(end: Transport) -> None:
    """A transfer gets on while its ranks wait for all others."""
    for size in (8, 400_000):
        message = numbers(size, end.device)
        place = torch.zeros_like(message)
        pending = None
        if end.rank == 0:
            pending = end.post_send([message], 1)
        elif end.rank == 1:
            pending = end.post_receive([place], 0)
        assert end.gather_objects(end.rank) == list(range(end.ranks))
        if pending is not None:
            end.wait(pending)
        if end.rank == 1:
            require_equal([place], [message])


def objects_of_any_size_go_to_a_neighbour(end: Transport) -> None:
    """As control messages, in order with tensors."""
    for size in OBJECT_SIZES:
        if end.rank == 0:
            send_object(end, {"size": size, "text": "x" * size}, 1)
            end.wait(end.post_send([numbers(5, end.device)], 1))
        elif end.rank == 1:
            assert receive_object(end, 0) == {"size": size, "text": "x" * size}
            place = torch.zeros(5, dtype=torch.uint8, device=end.device)
            end.wait(end.post_receive([place], 0))
            require_equal([place], [numbers(5, end.device)])


def a_tensor_with_gaps_is_refused(end: Transport) -> None:
    """On the rank that posts it, before the other one knows of it."""
    gaps = torch.zeros(4, 4, device=end.device).t()[1:]
    for post in (end.post_send, end.post_receive):
        refusal = "it was taken"
        try:
            post([gaps], (end.rank + 1) % end.ranks)
        except TransportError as error:
            refusal = str(error)
        assert "tensor [3, 4] has strides [1, 4]" in refusal, refusal


def numbers(size: int, device: torch.device) -> torch.Tensor:
    """Bytes that tell where they are, uint8 `[size]`."""
    return (torch.arange(size, device=device) % 251).to(torch.uint8)


def require_equal(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
    """Compare bit by bit.

    Raises:
        AssertionError: a tensor differs.
    """
    for one, other in zip(found, expected, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        bits = [tensor.reshape(-1).view(torch.uint8).cpu() for tensor in (one, other)]
        assert torch.equal(*bits), f"{one} was to be {other}"
