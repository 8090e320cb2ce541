"""What ranks tell each other: messages, the files of the private store, and receive descriptors."""

import os
import socket
from array import array
from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import msgpack
import torch

from runtime.data.notes import Note
from runtime.data.stream import Window
from runtime.execution.headers import Header
from runtime.failure.detection.monitored_barrier import MonitoredBarrier, Waiting
from runtime.failure.report import Failure
from runtime.failure.store import DamagedValueError, FailureStore, Heartbeat
from runtime.outputs.values import layout_of
from runtime.tensors.activation import describe
from runtime.tensors.decoding import decode
from runtime.tensors.encoding import EncodingError, encode
from runtime.tensors.encoding import Kind as Extension
from runtime.tensors.structure import take_apart
from runtime.transport import peer_process
from runtime.transport.private_store import PrivateStore
from runtime.transport.rendezvous import JobStore, RendezvousStore
from runtime.transport.shared_memory.endpoint import LocalChannelError, UnfinishedSends
from runtime.transport.shared_memory.sender import SendingEnd
from runtime.transport.shared_memory.wire_format import ReceiveDescriptor
from schedcc import Outcome, compile_stage
from schemas import Direction
from tests.tools.fuzz.edits import (
    NUMBERS,
    Seed,
    edited_bytes,
    edited_json,
    edited_numbers,
    values,
)
from tests.tools.fuzz.kinds import Kind, refused

LARGEST = 100_000
"""Bytes of a message."""

TENSORS = (torch.zeros(3), torch.ones(2, 2))
"""Those that travel beside a message."""


class UsersOwn:
    """A class that is not this project's."""


def messages(_: Path) -> Kind:
    """What ranks agree on before a run, headers and windows, and values of all types."""
    note = Note("float32[2, 128]", (2,), (2,), "look", "look", ("0" * 32, None))
    signatures = [
        describe(*take_apart(value)) for value in (TENSORS[0], [*TENSORS], {"a": (TENSORS[1], 3)})
    ]
    told: list[Any] = [
        Window(3, (note, note), ended=True),
        *(Header(signature, True) for signature in signatures),
        (Outcome(return_logits=True, replicas=2), Direction.RECV, compile_stage(2, 2, 1)),
        layout_of({"loss": 1.0, "metrics": {"a": (2.0, [3.0])}}),
        {"text": "é", 1: [None, True, -1, 2**70, 0.5, b"bytes"], "set": {1, 2}, "f": frozenset()},
        [torch.ones(2, 3), torch.arange(4).bool(), torch.zeros(0, 2), torch.bfloat16],
        (((((torch.Size([2, 0]), torch.device("cpu")),),),),),
        UsersOwn(),
    ]
    seeds = [Seed(".msgpack", encode(value)) for value in told]
    return Kind(seeds, _edited_message, _read_message)


def _read_message(_: Seed, content: bytes, __: Random) -> str:
    try:
        decode(content, TENSORS, users=False)
    except EncodingError as error:
        return refused(error)
    return "read"


def _edited_message(content: bytes, random: Random, others: list[Seed]) -> bytes:
    """Bytes or numbers of a message changed, or values within its extensions."""
    if random.random() < 0.4:
        return edited_numbers(content, random, others)[:LARGEST]
    while True:
        names, inside = msgpack.unpackb(content)
        whole = [names, _Extended(-1, _tree(inside))]
        for _ in range(random.choice((1, 1, 2, 4))):
            if places := _places(whole):
                _edit_tree(places, random)
        if len(_places(whole)) > LARGEST:
            continue  # what was repeated was repeated again
        try:
            found: bytes = _packed(whole)
        except (OverflowError, ValueError, TypeError):
            continue  # what msgpack has no bytes for
        if len(found) <= LARGEST:
            return found


@dataclass
class _Extended:
    """An extension, whose content is a message itself; -1: bytes that are one."""

    kind: int
    content: Any


def _tree(data: bytes) -> Any:
    def extended(kind: int, content: bytes) -> _Extended:
        return _Extended(kind, content if kind == Extension.PICKLED else _tree(content))

    return msgpack.unpackb(
        data, ext_hook=extended, strict_map_key=False, unicode_errors="surrogatepass"
    )


def _packed(value: Any) -> bytes:
    def extension(held: Any) -> Any:
        if isinstance(held, int):
            return msgpack.ExtType(Extension.INTEGER, msgpack.packb(f"{held:x}"))
        inside = held.content if type(held.content) is bytes else _packed(held.content)
        return inside if held.kind == -1 else msgpack.ExtType(held.kind % 128, inside)

    data: bytes = msgpack.packb(value, default=extension, unicode_errors="surrogatepass")
    return data


def _places(value: Any) -> list[tuple[Any, Any]]:
    """All places in a message: what holds a value, and by which key; some, if there are many."""
    found: list[tuple[Any, Any]] = []
    left = [value]
    while left and len(found) <= LARGEST:
        holder = left.pop()
        if isinstance(holder, list):
            inside: list[Any] = list(enumerate(holder))
        elif isinstance(holder, dict):
            inside = list(holder.items())
        else:
            inside = [("content", holder.content)]
        found += [(holder, key) for key, _ in inside]
        left += [held for _, held in inside if isinstance(held, list | dict | _Extended)]
    return found


def _edit_tree(places: list[tuple[Any, Any]], random: Random) -> None:
    holder, key = random.choice(places)
    other = _held(*random.choice(places))
    own = _held(holder, key)
    match random.randrange(6):
        case 0 if isinstance(own, _Extended):
            own.kind = random.randrange(14)
        case 1 if isinstance(holder, list):
            del holder[key]
        case 2 if isinstance(holder, list):
            holder[key:key] = [own] * random.choice((1, 1, 3, 500))
        case 3:
            for _ in range(random.choice((1, 1, 2, 20, 70))):
                own = _Extended(random.randrange(1, 14), own)
            _put(holder, key, own)
        case 4:
            _put(holder, key, deepcopy(other))
        case _:
            numbers = (*NUMBERS, -1, -(2**63), 0.5, float("nan"), b"\xff" * 24, "\ud800")
            _put(holder, key, random.choice((values(random), random.choice(numbers))))


def _held(holder: Any, key: Any) -> Any:
    return holder.content if isinstance(holder, _Extended) else holder[key]


def _put(holder: Any, key: Any, value: Any) -> None:
    if isinstance(holder, _Extended):
        holder.content = value
    else:
        holder[key] = value


def store_files(folder: Path) -> Kind:
    """What ranks leave in a private store, each of which another rank reads."""
    failure = Failure(kind="error", reporter=1, name="rank 1", at="step 2", reason="it broke")
    status = {"at": "step 1: ForwardPass", "seconds": 0.5, "progress": 3}
    beat = Heartbeat.model_validate({"number": 1, "evaluating": True, "status": status})
    waiting = Waiting(prefix="", generation=0, ranks=(0, 1), thread=1, task="saving", number=1)
    said = {
        "failure": failure.model_dump_json(),
        "heartbeat/1": beat.model_dump_json(),
        "waits/1": waiting.model_dump_json(),
        "process/1": "140000 key 1 2/schedcc-lives-0/127.0.0.1 4000",
        "evaluators/0-1/0": "7",
        "left/7/1": "evaluator 7\nit was closed",
    }
    seeds = [Seed(f" {key}".replace("/", "-"), text.encode()) for key, text in said.items()]
    keys = {seed.suffix: key for seed, key in zip(seeds, said, strict=True)}
    (folder / "store").mkdir(mode=0o700)
    return Kind(seeds, _edited_value, partial(_read_store, folder / "store", keys))


def _edited_value(content: bytes, random: Random, others: list[Seed]) -> bytes:
    edit = edited_json if content.startswith(b"{") else edited_bytes
    return edit(content, random, others)


def _read_store(
    directory: Path, keys: dict[str, str], seed: Seed, content: bytes, _: Random
) -> str:
    store, key = PrivateStore(str(directory)), keys[seed.suffix]
    ranks = RendezvousStore(store, 0, ("rank 0", "rank 1"), job=JobStore(store, (0, 1), ""))
    ranks.register("")
    store.set("process/1", "1 ")
    generation = store.part("generation 0") if key in ("failure", "heartbeat/1") else store
    generation.set(key, content)
    try:
        if key == "evaluators/0-1/0":
            name = ranks.next_evaluator()
            assert name.removeprefix("evaluator ").lstrip("-").isdecimal(), name
        else:
            _look(ranks)
    except (DamagedValueError, RuntimeError) as error:
        return refused(error)
    finally:
        generation.delete_key(key)
    return "read"


def _look(ranks: RendezvousStore) -> None:
    """Ask for all that may be there; no host that is named is reached for."""
    with patch.object(peer_process, "_probe", return_value=None):
        MonitoredBarrier(ranks, 0, "evaluator 7", "evaluation").look()
        ranks.has_ended(1)
        ranks.are_connectable([1])
    failures = FailureStore(ranks, 0)
    failures.heartbeats([1])
    failure = failures.read()
    assert failure is None or str(failure).replace("\n", "").replace("\t", "").isprintable()


def receive_descriptors(_: Path) -> Kind:
    """Where the next message is to come: places in a segment, apart and joined."""
    wanted = [
        ReceiveDescriptor(1, [(0, 16)]),
        ReceiveDescriptor(1, [(64, 16), (0, 8)], gone=[]),
        ReceiveDescriptor(1, [(0, 40)], joined=True),
        ReceiveDescriptor(0, []),
        ReceiveDescriptor(1, [(0, 16)], gone=[1]),
    ]
    return Kind([Seed(".bin", one.packed()) for one in wanted], edited_numbers, _fill)


def _fill(_: Seed, content: bytes, random: Random) -> str:
    """Have a message sent to where the descriptor says, with a segment or without one."""
    before = len(os.listdir("/proc/self/fd"))
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    segment = os.memfd_create("fuzz")
    sending = SendingEnd(one, timedelta(seconds=1), UnfinishedSends())
    sizes = random.choice(((16,), (16, 8), (), (16,)))
    joined = random.random() < 0.3
    try:
        os.ftruncate(segment, 4096)
        attached = array("i", [segment] * random.choice((1, 1, 1, 0)))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, attached)] if attached else []
        other.sendmsg([content or b"\0"], rights)
        views = [torch.zeros(size, dtype=torch.uint8) for size in sizes]
        sending.begin(views, joined=joined).wait()
    except LocalChannelError as error:
        return refused(error)
    else:
        return "filled"
    finally:
        sending.close()
        other.close()
        os.close(segment)
        after = len(os.listdir("/proc/self/fd"))
        assert after == before, f"{after - before} descriptors are left"
