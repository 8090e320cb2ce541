"""What ranks tell each other travels as a closed set of types, and reading it runs no code."""

import pickle
from collections import namedtuple
from dataclasses import dataclass
from random import Random
from typing import Any

import msgpack
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.data.notes import Note
from runtime.data.stream import Window
from runtime.outputs.values import layout_of
from runtime.tensors import decoding
from runtime.tensors.activation import describe
from runtime.tensors.decoding import PICKLE, decode
from runtime.tensors.encoding import DEEPEST, FREE, REPEATED, EncodingError, Kind, encode
from runtime.tensors.structure import put_together, take_apart
from runtime.transport.torch_distributed.object_gather import gather_objects
from schedcc import Outcome
from schemas import Direction

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters()),
    st.binary(),
    st.sampled_from([torch.float16, torch.int64, torch.Size([2, 0]), torch.device("cpu")]),
    st.frozensets(st.integers(-200, 200), max_size=1),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(st.text(), inner),
    ),
)
NOTE = Note("float32[2, 128]", (2,), (2,), "look", "look", ("0" * 32, None))
OURS = {
    "window": Window(3, (NOTE, NOTE), ended=True),
    "outcome": Outcome(return_logits=True, replicas=2),
    "channel": (Direction.RECV, 1),
    "layout": layout_of({"loss": 1.0, "metrics": {"a": (2.0, [3.0])}}),
    "signatures": [describe(*take_apart(value)) for value in (torch.ones(2), [torch.ones(3)] * 2)],
}


@dataclass
class Users:
    """A class that is not ours."""

    tensor: Any


Pair = namedtuple("Pair", "a b")


class Ends:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit",)


@given(value=VALUES)
def test_values_arrive_as_they_were(value):
    arrived = decode(encode(value))
    assert arrived == value
    assert repr(arrived) == repr(value)


@pytest.mark.parametrize("name", OURS)
def test_messages_of_ours_arrive_without_pickle(name, monkeypatch):
    monkeypatch.setenv(PICKLE, "0")
    assert decode(encode(OURS[name])) == OURS[name]


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.float8_e4m3fn, torch.int64])
def test_tensors_travel_as_their_bytes(dtype):
    tensor = torch.arange(6).reshape(2, 3).T.to(dtype)
    for one in (tensor, tensor[:, :0], tensor[0, 0]):
        arrived = decode(encode([one]))[0]
        assert (arrived.dtype, arrived.shape) == (one.dtype, one.shape)
        assert arrived.tolist() == one.tolist()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([1 + 2j, 3j]).conj(),
        torch.tensor([1 + 2j, 3j]).conj().imag,
        torch.eye(2).to_sparse(),
    ],
    ids=["conjugate", "negative", "sparse"],
)
def test_tensors_that_are_no_plain_memory_travel_too(tensor):
    assert torch.equal(decode(encode([tensor]))[0].to_dense(), tensor.to_dense())


def test_objects_of_users_travel_unless_that_is_refused(monkeypatch):
    tensor = torch.ones(2)
    for value in (Users(3), Pair(1, [2]), {"deep": Pair(1, 2)}):
        assert decode(encode(value)) == value
    structure, tensors = take_apart([Users(tensor), tensor])
    assert len(tensors) == 1
    whole = put_together(structure, ["here"])
    assert whole == [Users("here"), "here"]
    monkeypatch.setenv(PICKLE, "0")
    with pytest.raises(EncodingError, match="which only pickle can carry, and SCHEDCC_PICKLE is 0"):
        decode(encode(Users(3)))


@pytest.mark.parametrize(
    "name", ["os:system", "runtime.evaluator:Evaluator", "schemas.base:BaseModel", "runtime.:x"]
)
def test_no_class_but_data_classes_of_ours_is_made(name):
    made = msgpack.ExtType(Kind.OBJECT, msgpack.packb([0, []]))
    message = msgpack.packb([[name], msgpack.packb(made)])
    with pytest.raises(EncodingError, match="needed a data class of this project"):
        decode(message)


def test_no_class_but_an_enumeration_is_called_with_a_value():
    made = msgpack.ExtType(Kind.MEMBER, msgpack.packb([0, "anything"]))
    message = msgpack.packb([["runtime.transport.private_store:PrivateStore"], msgpack.packb(made)])
    with pytest.raises(EncodingError, match="a member of PrivateStore, needed an enumeration"):
        decode(message)


def test_an_object_that_cannot_be_unpickled_is_an_error_of_the_message():
    unreadable = msgpack.packb(msgpack.ExtType(Kind.PICKLED, b"cno.such_module\nUsers\n."))
    with pytest.raises(EncodingError, match="unpickled: ModuleNotFoundError: No module named 'no'"):
        decode(msgpack.packb([[], unreadable]))


@pytest.mark.parametrize("depth", [DEEPEST, DEEPEST + 1, 200])
def test_tuples_within_tuples_arrive_however_deep(depth):
    value: tuple[Any, ...] = ()
    for _ in range(depth - 1):
        value = (value,)
    assert decode(encode(value)) == value


def test_a_message_cannot_use_up_the_stack_of_its_reader():
    content = msgpack.packb(None)
    for _ in range(300):
        content = msgpack.packb(msgpack.ExtType(Kind.TUPLE, content))
    with pytest.raises(EncodingError, match=f"nested more than {DEEPEST} deep"):
        decode(msgpack.packb([[], content]))


def test_a_long_message_within_many_extensions_is_refused_by_its_reader_and_never_written(
    monkeypatch,
):
    content = msgpack.packb(b"x" * FREE)
    for _ in range(REPEATED + 2):
        content = msgpack.packb(msgpack.ExtType(Kind.TUPLE, content))
    with pytest.raises(EncodingError, match="bytes in extensions within each other"):
        decode(msgpack.packb([[], content]))
    value: Any = "x" * FREE
    for _ in range(REPEATED + 2):
        value = (value,)
    assert decode(encode(value)) == value  # by pickle
    monkeypatch.setenv(PICKLE, "0")
    with pytest.raises(EncodingError, match="which only pickle can carry"):
        decode(encode(value))
    for _ in range(2):
        (value,) = value
    assert decode(encode(value)) == value  # without


@pytest.mark.parametrize(("tuples", "refused"), [(REPEATED - 1, False), (REPEATED, True)])
def test_a_long_tensor_counts_among_the_tuples_that_it_is_within(monkeypatch, tuples, refused):
    monkeypatch.setenv(PICKLE, "0")
    value: Any = torch.zeros(FREE + FREE // 2, dtype=torch.uint8)
    for _ in range(tuples):
        value = (value,)
    message = encode(value)
    if refused:
        with pytest.raises(EncodingError, match=f"or a tensor within 64 others .{REPEATED}, if"):
            decode(message)
        return
    arrived = decode(message)
    while isinstance(arrived, tuple):
        (arrived,) = arrived
    assert arrived.shape == (FREE + FREE // 2,)


def test_a_number_in_place_of_the_bytes_of_a_tensor_makes_none():
    dtype = msgpack.ExtType(Kind.DTYPE, msgpack.packb("uint8"))
    tensor = msgpack.ExtType(Kind.TENSOR, msgpack.packb([dtype, [2**62], 2**62]))
    with pytest.raises(EncodingError, match="has a int for the bytes of a tensor"):
        decode(msgpack.packb([[], msgpack.packb(tensor)]))


def test_a_tensor_of_hundreds_of_dimensions_without_bytes_is_shown_in_part():
    dtype = msgpack.ExtType(Kind.DTYPE, msgpack.packb("uint8"))
    tensor = msgpack.ExtType(Kind.TENSOR, msgpack.packb([dtype, [2] * 500, b""]))
    with pytest.raises(EncodingError, match=r"has no bytes of a tensor \[2, 2, ") as raised:
        decode(msgpack.packb([[], msgpack.packb(tensor)]))
    assert len(str(raised.value)) < 400


def test_damage_that_cannot_be_shown_is_an_error_of_the_message():
    size = msgpack.ExtType(Kind.SIZE, msgpack.packb([msgpack.ExtType(5, msgpack.packb("f" * 20))]))
    dtype = msgpack.ExtType(Kind.DTYPE, msgpack.packb(size))
    with pytest.raises(EncodingError, match="is damaged"):
        decode(msgpack.packb([[], msgpack.packb(dtype)]))


def test_damage_is_an_error_in_bounded_memory():
    random = Random(1)
    messages = [encode(value) for value in (*OURS.values(), [1.5, "text", {"a": torch.ones(3)}])]
    for _ in range(3000):
        message = bytearray(random.choice(messages))
        for _ in range(random.randint(1, 4)):
            message[random.randrange(len(message))] = random.randrange(256)
        try:
            decode(
                bytes(message)[: random.choice((None, random.randrange(len(message))))], users=False
            )
        except EncodingError:
            continue
    for beyond in (b"\xdd\xff\xff\xff\xff", b"\x91" * 100_000):
        with pytest.raises(EncodingError, match="is damaged"):
            decode(msgpack.packb([[], beyond]))


def test_what_a_stranger_sends_among_ranks_runs_nothing(monkeypatch):
    monkeypatch.setattr(decoding, "_Unpickler", None)
    strange = pickle.dumps(Ends())

    def all_gather(own: torch.Tensor) -> list[torch.Tensor]:
        data = len(strange).to_bytes(8, "little") + strange
        other = torch.frombuffer(bytearray(data.ljust(len(own), b"\0")), dtype=torch.uint8)
        return [own, other]

    with pytest.raises(EncodingError):
        gather_objects("mine", all_gather)
