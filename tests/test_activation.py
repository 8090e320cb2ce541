"""Activations are trees of tensors, and their signatures tell them apart."""

from functools import partial
from typing import Any

import pytest
import torch

from runtime.activation import ActivationError, signature_of
from runtime.buffers import Buffer


def as_sent(activation: Any) -> Any:
    """The activation as it arrives: through flat memory."""
    signature = signature_of(activation)
    memory = signature.memory_of(activation)
    return signature.over([flat.clone() for flat in memory])


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
    ],
)
def test_strides_arrive_where_memory_has_no_gaps_and_values_always(tensor):
    arrived = as_sent(tensor)
    assert torch.equal(arrived, tensor)
    assert arrived.stride() == torch.empty_like(tensor).stride()


def test_a_signature_adapts_the_strides_of_what_fits_it():
    agreed = signature_of(torch.zeros(2, 3))
    value = torch.randn(3, 2).t()
    assert agreed.accepts(value)
    (memory,) = agreed.memory_of(value)
    assert torch.equal(agreed.over([memory]), value)


def test_a_signature_accepts_its_structure_shapes_and_dtypes_only():
    x = torch.zeros(2, 3)
    agreed = signature_of({"a": x})
    assert agreed.accepts({"a": x.clone()})
    others = [x, {"b": x}, {"a": x.t()}, {"a": x.double()}, {"a": (x,)}, {"a": x, "b": x}, {"a": 1}]
    assert not any(map(agreed.accepts, others))


def test_signatures_differ_by_structure_shape_and_dtype():
    x = torch.zeros(2, 3)
    others = [(x,), {"a": x}, torch.zeros(3, 2), x.double(), [x, x]]
    assert len({signature_of(value) for value in [x, *others]}) == 6


def test_a_signature_reads_like_the_activation():
    signature = signature_of((torch.zeros(2, 3), torch.zeros(2, dtype=torch.bool)))
    assert str(signature) == "('float32[2, 3]', 'bool[2]')"


def test_what_is_no_tensor_is_named():
    with pytest.raises(ActivationError, match="activation holds 'x' of type str, needed tensors"):
        signature_of((torch.zeros(1), "x"))


def test_receive_memory_is_allocated_once_and_grows_to_the_largest_activation():
    buffer = Buffer(partial(torch.empty, dtype=torch.uint8))
    small, large = signature_of(torch.zeros(2, 3)), signature_of(torch.zeros(5, 3))
    first = buffer.receive_memory(small)[0]
    again = buffer.receive_memory(small)[0]
    assert first.data_ptr() == again.data_ptr()
    grown = buffer.receive_memory(large)[0]
    back = buffer.receive_memory(small)[0]
    assert grown.data_ptr() == back.data_ptr()
    assert (len(back), len(grown)) == (24, 60)


def test_an_output_in_receive_memory_is_copied_and_any_other_is_not():
    buffer = Buffer(partial(torch.empty, dtype=torch.uint8))
    signature = signature_of(torch.zeros(4, 3))
    received = signature.over(buffer.receive_memory(signature))
    fresh = torch.ones(2)
    mask, kept = buffer.own((received[1:], fresh))
    assert mask.data_ptr() != received[1:].data_ptr()
    assert kept is fresh
