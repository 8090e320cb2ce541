"""Headers go ahead of what the other end cannot know, and only of that."""

from typing import Any

import pytest
import torch
from torch import nn

from runtime.execution import transfers
from runtime.testing import InMemoryTransport
from tests.support.models_for_tests import batches, mlp, one_process, over_stages


@pytest.fixture
def headers(monkeypatch) -> list[int]:
    """The micro-batches that brought a header."""
    brought: list[int] = []
    settles = transfers.Transfers._settles

    def noted(self: Any, transfer: Any, signature: Any) -> bool:
        brought.append(transfer.micro_batch)
        return settles(self, transfer, signature)

    monkeypatch.setattr(transfers.Transfers, "_settles", noted)
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
    monkeypatch.setattr(transfers, "KINDS", kinds)
    monkeypatch.setattr(transfers, "WATCHED", 10**6)
    sizes = [1, 2, 3, 1, 2, 2, 3, 1, 1, 4, 3, 2, 1, 4, 4, 1, 2, 3, 3, 2]
    expected = tuple(one_process(mlp(), batches(sizes))[1])
    for found in over_stages(3, lambda ev: losses(ev, sizes), overlap=overlap):
        assert found == expected


def test_no_message_is_sent_for_each_micro_batch_but_the_activation(monkeypatch):
    sent: list[int] = []
    post = InMemoryTransport.post_send

    def counted(self: Any, payload: Any, peer: int) -> Any:
        sent.append(self.stage_id)
        return post(self, payload, peer)

    monkeypatch.setattr(InMemoryTransport, "post_send", counted)
    over_stages(3, lambda ev: losses(ev, [2] * 50))
    assert sorted(sent) == [0] * 51 + [1] * 51, "fifty activations and a header on each channel"
