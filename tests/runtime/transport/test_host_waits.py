"""A host never waits inside a device for what may never come: with a fake device, and its calls."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from runtime import device
from runtime.device import Clock
from runtime.outputs.logits import Logits
from runtime.outputs.options import EvalOptions
from runtime.testing import InMemoryTransport, run_threads
from runtime.transport import TransportError
from runtime.transport.control_messages import (
    WINDOW_ROOM,
    packed,
    packed_in,
    unpacked,
    unpacked_from,
)

SOON = 20.0


class FakeGpu(Clock):
    """A GPU that gets on by one mark whenever the host has looked at it twice."""

    calls: list[str]

    def __init__(self, *, hangs: bool = False) -> None:
        super().__init__(torch.device("cpu"))
        self.on_gpu, self.hangs, self.calls, self._looks = True, hangs, [], 0

    def mark(self) -> Any:
        self.calls.append("mark")
        self._looks = 0
        return 0.0

    def reached(self, _mark: Any) -> bool:
        self._looks += 1
        return not self.hangs and self._looks > 2

    def synchronize(self) -> None:
        raise AssertionError("the host blocks in the device")


@pytest.fixture(autouse=True)
def pinned(monkeypatch) -> list[torch.Tensor]:
    """The memory that the device copies by itself."""
    made: list[torch.Tensor] = []

    def make(shape: Any, dtype: Any) -> torch.Tensor:
        made.append(torch.empty(shape, dtype=dtype))
        return made[-1]

    monkeypatch.setattr(device, "_pinned", make)
    return made


def blocks(*_: Any, **__: Any) -> None:
    raise AssertionError("the host blocks in the device")


def test_what_a_device_has_is_read_by_looking_at_it_and_not_in_a_call(monkeypatch, pinned):
    gpu, looked = FakeGpu(), []
    monkeypatch.setattr(torch.Tensor, "cpu", blocks)
    found = gpu.download(torch.arange(3), lambda: looked.append(1))
    assert found is pinned[0]
    assert found.tolist() == [0, 1, 2]
    assert gpu.calls == ["mark"], "behind the copy"
    assert len(looked) == 3


def test_a_host_that_reads_is_told_of_a_failure():
    failed = threading.Event()

    def check() -> None:
        if failed.is_set():
            raise TransportError("aborted")

    threading.Timer(0.05, failed.set).start()
    with pytest.raises(TransportError, match="aborted"):
        FakeGpu(hangs=True).download(torch.arange(3), check)


def test_what_was_read_while_the_group_was_aborted_is_not_believed():
    def check() -> None:
        raise TransportError("aborted")

    gpu = FakeGpu()
    gpu.reached = lambda _mark: True  # type: ignore[method-assign]  # after an abort, all is done
    with pytest.raises(TransportError, match="aborted"):
        gpu.download(torch.arange(3), check)


@pytest.mark.parametrize("size", [10, 5000])
def test_headers_and_windows_are_read_watchfully(size, monkeypatch, pinned):
    """Over a transport whose messages are on a GPU, which blocks whoever copies them itself."""
    gpu = FakeGpu()
    value = {"text": "x" * size}

    def stage(end: InMemoryTransport) -> Any:
        end.to_host = lambda message: gpu.download(message, lambda: None)  # type: ignore
        if end.rank == 0:
            for part in [
                *packed(value, end.device),
                packed_in(WINDOW_ROOM, value, end.device),
            ]:
                end.wait(end.post_send([part], 1))
            return None
        first = torch.empty(1024, dtype=torch.uint8)
        end.wait(end.post_receive([first], 0))
        header = unpacked(first, end, 0)
        window = torch.empty(WINDOW_ROOM, dtype=torch.uint8)
        end.wait(end.post_receive([window], 0))
        return header, unpacked_from(window, end)

    monkeypatch.setattr(torch.Tensor, "cpu", blocks)
    assert run_threads(2, stage)[1] == (value, value)
    assert len(pinned) == len(gpu.calls) == (2 if size == 10 else 3)


def test_control_messages_go_to_the_device_without_waiting_for_its_stream(monkeypatch, pinned):
    gpu, moved = FakeGpu(), []
    to = torch.Tensor.to

    def noted(tensor: torch.Tensor, *where: Any, **options: Any) -> torch.Tensor:
        moved.append((tensor is pinned[-1], options))
        return to(tensor, *where, **options)

    monkeypatch.setattr("runtime.transport.control_messages.Clock", lambda _: gpu)
    monkeypatch.setattr(torch.Tensor, "to", noted)
    (message,) = packed({"a": 1}, torch.device("cpu"))
    assert moved == [(True, {"non_blocking": True})]
    assert unpacked(message, SimpleNamespace(to_host=lambda m: m), 0) == {"a": 1}  # type: ignore


def test_logits_that_are_moved_are_waited_for_watchfully(monkeypatch):
    waited: list[str] = []
    monkeypatch.setattr(Clock, "synchronize", blocks)
    came: list[int] = []
    options = EvalOptions(logits_device="cpu", on_logits=lambda m, _: came.append(m))
    logits = Logits(options, torch.device("cpu"), lambda: waited.append("watchfully"))
    logits.deliver([torch.zeros(2)], lambda holder: holder[0])
    logits.finish()
    assert (came, waited) == ([0], ["watchfully"] * 2)
