"""A tensor on another device is refused by its path, before anything is sent."""

from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from runtime.execution.buffers import BufferPool
from runtime.execution.transfer import Transfer
from runtime.execution.transfers import Transfers
from runtime.tensors.activation import ActivationError
from runtime.tensors.on_device import path_to, require_on
from runtime.testing import InMemoryNetwork, InMemoryTransport
from schemas import Direction
from tests.support.models_for_tests import batches, stream_of

Pair = namedtuple("Pair", "hidden mask")
HERE = torch.device("cuda", 1)


@dataclass
class Output:
    hidden: Any
    name: str = "x"


class Anything:
    def __init__(self, part: Any) -> None:
        self.part = part


class Fake(SimpleNamespace):
    """As much of a tensor as is looked at, on a device that this machine may not have."""

    def __init__(self, device: str) -> None:
        super().__init__(device=torch.device(device), dtype=torch.float32, shape=(2, 3))


@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (lambda x: x, ""),
        (lambda x: {"hidden": [1, x]}, "['hidden'][1]"),
        (lambda x: (Pair(3, mask=x),), "[0].mask"),
        (lambda x: Output({2: x}), ".hidden[2]"),
        (lambda x: [Anything(x)], "[0].part"),
    ],
)
def test_a_tensor_has_a_path(wrap, path):
    x = torch.zeros(2, 3)
    assert path_to(x, wrap(x)) == path


def test_a_value_that_holds_itself_has_paths_too():
    value: list[Any] = [torch.zeros(1)]
    value.append(value)
    assert path_to(value[0], value) == "[0]"
    assert path_to(torch.zeros(1), value) is None


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_what_is_on_another_device_is_named_by_its_path(device):
    there, elsewhere = Fake("cuda:1"), Fake(device)
    value = {"a": there, "b": (elsewhere,)}
    with pytest.raises(ActivationError) as caught:
        require_on(HERE, value, [there, elsewhere])  # type: ignore[list-item]
    assert str(caught.value) == (
        f"activation['b'][0], torch.float32 [2, 3], is on {device}, needed all tensors between "
        "stages on cuda:1"
    )


def test_a_device_without_an_index_is_any_of_its_type():
    require_on(torch.device("cuda"), None, [Fake("cuda:0"), Fake("cuda:3")])  # type: ignore[list-item]


def test_an_activation_elsewhere_is_told_before_anything_is_sent(monkeypatch):
    end = InMemoryNetwork(2).endpoint(0)
    data = batches([2])
    moves = Transfers(end, BufferPool(end.receive_memory), stream_of(data, end), range(2))
    monkeypatch.setattr(InMemoryTransport, "device", HERE)
    sent: list[Any] = []
    monkeypatch.setattr(InMemoryTransport, "post_send", lambda *given: sent.append(given))
    told = (
        r"micro-batch 0 cannot go to stage 1: activation\['hidden'\], torch.float32 \[2, 4\], is "
        "on cpu, needed all tensors between stages on cuda:1"
    )
    with pytest.raises(ActivationError, match=told):
        moves.begin([Transfer(Direction.SEND, 0, 0, 1, {"hidden": data[0][0]})])
    assert sent == []
