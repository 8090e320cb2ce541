"""The failure store: what comes from it is shown as text, whoever wrote it."""

import json
import threading

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from runtime.device import Clock
from runtime.failure.detection.heartbeat import HeartbeatTask
from runtime.failure.detection.instruction_pointer import InstructionPointer
from runtime.failure.detection.periodic import PeriodicThread
from runtime.failure.report import Failure
from runtime.failure.state import FailureState
from runtime.failure.store import DamagedValueError, FailureStore
from runtime.transport.private_store import PrivateStore, PrivateStoreError
from runtime.transport.rendezvous import RendezvousStore

EVIL = "\x1b[2J\x1b]0;owned\x07\x9b1A\r\u202e"
SHOWN = r"\x1b[2J\x1b]0;owned\x07\x9b1A\r\u202e"


def test_a_failure_from_the_store_moves_no_cursor():
    ranks = RendezvousStore(HashStore(), 0, ("stage 0", "stage 1"))
    failure = Failure(
        kind="error",
        reporter=1,
        name=EVIL,
        at=EVIL,
        error=EVIL,
        reason=f"{EVIL}\n{EVIL}",
        traceback=f"Traceback:\n\t{EVIL}\n",
    )
    store = FailureStore(ranks, 0)
    for found in (store.publish(failure), store.read()):
        assert found is not None
        assert found.reason == f"{SHOWN}\n{SHOWN}"
        assert found.traceback == f"Traceback:\n\t{SHOWN}\n"
        assert all(line.replace("\t", "").isprintable() for line in str(found).splitlines())


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("{}", "number is missing"),
        ("[" * 10_000, "the document is "),
        (b"\xff", "the document is "),
        (json.dumps({"number": EVIL}), "number is "),
    ],
)
def test_a_heartbeat_that_is_none_is_one_sentence_and_ends_the_run(value, why):
    ranks = RendezvousStore(HashStore(), 0, ("stage 0", "stage 1"))
    store = FailureStore(ranks, 0)
    ranks.store.set("generation 0/heartbeat/1", value)
    with pytest.raises(
        DamagedValueError, match=f"heartbeat/1 in the store is no Heart.*: {why}"
    ) as e:
        store.heartbeats([1])
    assert str(e.value).isprintable()
    state = FailureState(lambda: None)
    pointer = InstructionPointer(lambda: None, Clock(torch.device("cpu")))
    task = HeartbeatTask(store, ranks, pointer, state, PeriodicThread("test"))
    task.tick(requested=True)
    assert task.store_error == f"{e.value}, so nothing more is read there"


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"x key/name/",
        b"7 key",
        b"7 a/b/c/d",
        b"7 key/name/127.0.0.1 99999",
        b"7 key/name/127.0.0.1",
        b"7 key/name/node0 80",
        b"7 key/name/\xff 1",
        b"7 key/name/a/b 1",
        b"9" * 5000 + b" ",
    ],
)
def test_a_rank_that_registers_as_something_else_is_not_known(value):
    ranks = RendezvousStore(HashStore(), 0, ("stage 0", "stage 1"))
    ranks.store.set("process/1", value)
    ranks.learn([1])
    assert ranks.registered(1) == (None, "")
    assert not ranks.has_ended(1)
    assert not ranks.are_connectable([1])


@pytest.mark.parametrize("liveness", ["", "key/name/", "a key 5/name/127.0.0.1 80", "//fe80::1 80"])
def test_a_rank_is_known_as_it_has_registered(liveness):
    store = HashStore()
    RendezvousStore(store, 1, ("stage 0", "stage 1")).register(liveness)
    ranks = RendezvousStore(store, 0, ("stage 0", "stage 1"))
    ranks.learn([1])
    assert ranks.registered(1) == (threading.get_ident(), liveness)


@pytest.mark.parametrize("value", [b"x", b"9" * 5000, b"\xff"])
def test_a_number_in_the_private_store_that_is_none_is_one_sentence(tmp_path, value):
    store = PrivateStore(str(tmp_path))
    store.set("count", value)
    with pytest.raises(
        PrivateStoreError, match=f"count has a value of {len(value)} bytes, needed a"
    ):
        store.add("count", 1)
