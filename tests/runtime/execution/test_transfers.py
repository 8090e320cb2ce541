"""Headers go ahead of what the other end cannot know, and only of that."""

from typing import Any

import pytest
import torch
from torch import nn

from runtime.execution import signatures, transfer, transfers
from runtime.execution.buffers import BufferPool
from runtime.testing import InMemoryTransport, run_threads
from schemas import Direction
from tests.support.models_for_tests import batches, mlp, one_process, over_stages, stream_of


@pytest.fixture
def headers(monkeypatch) -> list[int]:
    """The micro-batches that brought a header."""
    brought: list[int] = []
    settles = signatures.Signatures.settles

    def noted(self: Any, stage: int, micro_batch: int, signature: Any, value: Any) -> bool:
        brought.append(micro_batch)
        return settles(self, stage, micro_batch, signature, value)

    monkeypatch.setattr(signatures.Signatures, "settles", noted)
    return brought


def losses(ev: Any, sizes: list[int]) -> Any:
    return ev.evaluate(batches(sizes)).losses


def test_only_the_first_activation_of_a_kind_brings_its_shape(headers):
    sizes = [2, 2, 3, 2, 3, 3, 2]
    found = over_stages(2, lambda ev: losses(ev, sizes))
    assert headers == [0, 2]
    assert found[0] == tuple(one_process(mlp(), batches(sizes))[1])


def test_each_evaluation_begins_anew(headers):
    over_stages(2, lambda ev: [losses(ev, [2, 2]) for _ in range(2)])
    assert headers == [0, 0]


def test_every_activation_brings_its_shape_on_request(headers):
    over_stages(2, lambda ev: losses(ev, [2, 2, 2]), dynamic_shapes=True)
    assert headers == [0, 1, 2]


def test_where_shapes_depend_on_values_every_activation_brings_its_own(headers):
    class Positive(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[x.sum(1) > -100]

    def layers() -> list[nn.Module]:
        torch.manual_seed(0)
        return [nn.Linear(4, 6), Positive(), nn.Linear(6, 6)]

    over_stages(3, lambda ev: losses(ev, [2, 2, 2]), layers=layers)
    assert sorted(headers) == [0, 0, 1, 2], "from the first stage only the first one"


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("kinds", [1, 2, 3])
def test_both_ends_forget_the_same_kinds(kinds, overlap, monkeypatch):
    monkeypatch.setattr(signatures, "KINDS", kinds)
    monkeypatch.setattr(signatures, "WATCHED", 10**6)
    sizes = [1, 2, 3, 1, 2, 2, 3, 1, 1, 4, 3, 2, 1, 4, 4, 1, 2, 3, 3, 2]
    expected = tuple(one_process(mlp(), batches(sizes))[1])
    for found in over_stages(3, lambda ev: losses(ev, sizes), overlap=overlap):
        assert found == expected


@pytest.fixture
def sent(monkeypatch) -> list[int]:
    """The stage of every message."""
    stages: list[int] = []
    post = InMemoryTransport.post_send

    def counted(self: Any, payload: Any, peer: int, **options: Any) -> Any:
        stages.append(self.rank)
        return post(self, payload, peer, **options)

    monkeypatch.setattr(InMemoryTransport, "post_send", counted)
    return stages


def test_no_message_is_sent_for_each_micro_batch_but_the_activation(sent):
    over_stages(3, lambda ev: losses(ev, [2] * 50))
    assert sorted(sent) == [0] * 51 + [1] * 51, "fifty activations and a header on each channel"


@pytest.mark.parametrize("overlap", [True, False])
def test_an_activation_is_in_the_message_of_its_header_where_there_is_room(sent, overlap):
    sizes = [40, *range(1, 40)]
    for found in over_stages(3, lambda ev: losses(ev, sizes), overlap=overlap):
        assert found == tuple(one_process(mlp(), batches(sizes))[1])
    assert sorted(sent) == [0] * 41 + [1] * 41, "only the first header goes ahead"


def test_an_activation_that_is_larger_than_all_before_follows_its_header(sent):
    sizes = [10, 20, 30, 31, 1, 40]  # after 30 there is room for 37
    over_stages(2, lambda ev: losses(ev, sizes))
    assert len(sent) == 6 + 4


@pytest.mark.parametrize("overlap", [True, False])
def test_where_messages_are_not_joined_every_header_goes_ahead(sent, overlap, monkeypatch):
    monkeypatch.setattr(InMemoryTransport, "joins", lambda *_: False)
    sizes = [40, *range(1, 40)]
    for found in over_stages(2, lambda ev: losses(ev, sizes), overlap=overlap):
        assert found == tuple(one_process(mlp(), batches(sizes))[1])
    assert len(sent) == 2 * len(sizes)


@pytest.mark.parametrize("joins", [True, False])
def test_both_ends_of_a_group_see_the_same_room_beside_a_header(joins, monkeypatch):
    """A middle stage hands on and receives in one group; its neighbours post one by one."""
    monkeypatch.setattr(InMemoryTransport, "joins", lambda *_: joins)
    activations = [torch.randn(n, 3) for n in (2, 9, 4, 9, 1, 30, 7)]
    data = [(x, x) for x in activations]

    def stage(end: InMemoryTransport) -> list[torch.Tensor]:
        moves = transfers.Transfers(
            end, BufferPool(end.receive_memory), stream_of(data, end), range(end.ranks)
        )
        came: list[torch.Tensor] = []

        def receive(m: int) -> transfer.Transfer:
            return transfer.Transfer(Direction.RECV, end.rank, m, end.rank - 1)

        def send(m: int) -> transfer.Transfer:
            value = came[m] if end.rank else activations[m]
            return transfer.Transfer(Direction.SEND, end.rank, m, end.rank + 1, value.clone())

        for m in range(len(data) + 1):
            group = [send(m - 1)] if end.rank == 1 and m else []
            if m < len(data):
                group.append(send(m) if end.rank == 0 else receive(m))
            if end.rank == 2 and m == len(data):
                break
            if group:
                moves.begin(group)
            for member in group:
                value = moves.finish(member)
                if member.direction is Direction.RECV:
                    came.append(value.clone())
        return came

    _, second, third = run_threads(3, stage, timeout=30)
    assert all(map(torch.equal, second, activations))
    assert all(map(torch.equal, third, activations))


def test_memory_for_receives_follows_the_largest_activation_not_their_number():
    def call(ev: Any) -> tuple[int, int]:
        ev.evaluate(batches([1 + 7 * n % 64 for n in range(300)]))
        memory = list(ev._runner._buffers.memory._memory.values())
        return len(memory), max((one.numel() for one in memory), default=0)

    largest = 64 * 6 * 4
    for count, nbytes in over_stages(3, call)[1:]:
        assert 1 <= count <= 4
        assert largest <= nbytes <= 1.5 * largest + 2048, "a header and a quarter more"
