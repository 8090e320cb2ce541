"""Activations are trees of tensors, and their signatures tell them apart."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from runtime.execution.buffers import BufferPool
from runtime.tensors.activation import (
    INTERNED_BYTES,
    ActivationError,
    Signature,
    _of_one,
    describe,
    described,
)
from runtime.tensors.structure import take_apart


def signature_of(activation: Any) -> Signature:
    return described(activation)[0]


def as_sent(activation: Any) -> Any:
    """The activation as it arrives: through flat memory."""
    structure, tensors = take_apart(activation)
    signature = describe(structure, tensors)
    memory = BufferPool(partial(torch.empty, dtype=torch.uint8)).receive_memory(signature)
    for there, here in zip(memory, signature.memory_of(tensors), strict=True):
        there.copy_(here)
    return signature.activation(memory)


def test_an_activation_is_rebuilt_from_its_signature_and_memory():
    activation = {"hidden": torch.randn(2, 3), "rest": (torch.ones(1), [torch.tensor(True)])}
    arrived = as_sent(activation)
    assert torch.equal(arrived["hidden"], activation["hidden"])
    assert isinstance(arrived["rest"], tuple)
    assert signature_of(arrived) == signature_of(activation)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4).t(),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(2, 3, 4).permute(2, 0, 1),
        torch.randn(6, 4)[::2],
        torch.randn(1, 4).expand(3, 4),
        torch.randn(0, 4),
        torch.tensor(2.5),
        torch.randn(3, 32, 48)[:, :-1],
        torch.randn(6, 9)[:, ::2],
        torch.randn(6, 6).diagonal(),
        torch.randn(6, 9)[1:, 3:],
        torch.randn(4, dtype=torch.complex64).conj(),
        torch.randn(4, dtype=torch.complex64).conj().imag,
        torch.arange(5).to(torch.uint16)[1:],
    ],
)
def test_a_tensor_arrives_with_its_strides_and_its_alignment(tensor):
    arrived = as_sent(tensor)
    assert torch.equal(arrived, tensor)
    assert arrived.stride() == tensor.stride()
    assert (arrived.is_conj(), arrived.is_neg()) == (tensor.is_conj(), tensor.is_neg())
    if tensor.numel():
        assert arrived.data_ptr() % 64 == tensor.data_ptr() % 64


def test_tensors_that_share_memory_share_it_where_they_arrive():
    whole = torch.randn(4, 6)
    same, view, other = as_sent((whole, (whole[:, :3], whole), torch.ones(2)))[:3]
    assert view[1] is same
    view[0].zero_()
    assert torch.equal(same[:, :3], torch.zeros(4, 3))
    assert torch.equal(same[:, 3:], whole[:, 3:])
    assert torch.equal(other, torch.ones(2))


class Pair(NamedTuple):
    hidden: torch.Tensor
    length: int


@dataclass
class State:
    hidden: torch.Tensor
    name: str = "state"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: (x, None, 3, True, "text"),
        lambda x: Pair(x, 7),
        lambda x: {"state": State(x), "rest": [2.5]},
        lambda x: torch.max(x, 1),
    ],
)
def test_what_is_no_tensor_travels_as_it_is(wrap):
    value = wrap(torch.randn(3, 4))
    arrived = as_sent(value)
    assert type(arrived) is type(value)
    assert repr(arrived) == repr(value)


def test_what_cannot_travel_is_told_in_one_sentence():
    dense = torch.ones(2, 2)
    cases = [
        (dense.to_sparse(), r"a tensor of layout torch\.sparse_coo, torch\.float32 \[2, 2\]"),
        (torch.quantize_per_tensor(dense, 0.1, 0, torch.quint8), "a quantised tensor"),
        (torch.ones(2, device="meta"), "a tensor without memory"),
        (nn.Buffer(dense).as_subclass(Marked), "a Marked"),
        ((dense, lambda: None), "what cannot travel between stages: tuple cannot be pickled"),
    ]
    for value, text in cases:
        with pytest.raises(ActivationError, match=text) as caught:
            signature_of(value)
        assert "\n" not in str(caught.value)


class Marked(torch.Tensor):
    pass


def test_a_signature_accepts_its_structure_shapes_and_dtypes_only():
    x = torch.zeros(2, 3)
    agreed = signature_of({"a": x})
    assert signature_of({"a": x.clone()}) == agreed
    others = [x, {"b": x}, {"a": x.t()}, {"a": x.double()}, {"a": (x,)}, {"a": x, "b": x}, {"a": 1}]
    assert not any(signature_of(other) == agreed for other in others)


def test_signatures_differ_by_structure_shape_and_dtype():
    x = torch.zeros(2, 3)
    others = [(x,), {"a": x}, torch.zeros(3, 2), x.double(), [x, x]]
    assert len({signature_of(value) for value in [x, *others]}) == 6


def test_a_signature_reads_like_the_activation():
    signature = signature_of((torch.zeros(2, 3), torch.zeros(2, dtype=torch.bool)))
    assert str(signature) == "('float32[2, 3]', 'bool[2]')"


def test_received_memory_is_used_again_and_grows_to_the_largest_activation():
    allocated: list[int] = []

    def allocate(nbytes: int) -> torch.Tensor:
        allocated.append(nbytes)
        return torch.empty(nbytes, dtype=torch.uint8)

    pool = BufferPool(allocate)
    small, large = signature_of(torch.zeros(2, 3)), signature_of(torch.zeros(5, 3))
    for signature in [small, small, large, small, large]:
        (memory,) = pool.receive_memory(signature)
        assert memory.numel() == signature.nbytes
        del memory
    assert len(allocated) == 2
    assert [24, 60] <= allocated <= [27, 68]


def test_received_memory_is_left_to_whoever_keeps_a_part_of_it():
    released: list[int] = []
    allocate = partial(torch.empty, dtype=torch.uint8)
    pool = BufferPool(allocate, lambda memory: released.append(memory.numel()))
    signature = signature_of(torch.zeros(2, 3))
    kept: list[Any] = []
    for number in range(12):
        memory = pool.receive_memory(signature)
        value = signature.activation(memory)
        value.fill_(number)
        kept.append([value, value[0], value.numpy(), value.detach().view(-1)][number % 4])
        del memory, value
    assert [float(np.asarray(part).min()) for part in kept] == list(range(12))
    assert len(released) == 8, "the pool keeps no more than it may need"
    del kept[:]
    addresses = {pool.receive_memory(signature)[0].data_ptr() for _ in range(9)}
    assert len(addresses) == 1


@pytest.mark.parametrize(("text", "kept"), [("short", 1), ("long" * INTERNED_BYTES, 0)])
def test_signatures_that_arrive_with_long_values_are_not_kept(text, kept):
    sent = signature_of([torch.ones(3), text])
    _of_one.cache_clear()
    assert Signature.from_message(sent.to_message()) == sent
    assert _of_one.cache_info().currsize == kept
