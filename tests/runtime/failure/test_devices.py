"""A host and its GPU: polled, bounded in its lead, and left by force; with a fake device."""

import threading
import time
from typing import Any

import pytest

from runtime.device import Clock
from runtime.failure.detection import instruction_pointer
from runtime.failure.detection.instruction_pointer import InstructionPointer
from runtime.failure.forced_exit import ForcedExit
from runtime.failure.report import Failure
from schedcc import compile_stage
from schemas import ForwardPass


def test_a_process_stuck_in_its_device_is_ended_after_a_grace_period_and_says_why():
    ended: list[int] = []
    written: list[str] = []
    forced_exit = ForcedExit(grace=10.0, exit=ended.append, write=written.append)
    failure = Failure.of(ArithmeticError("no"), reporter=2, name="stage 2", at="step 7")
    forced_exit.consider(failure, now=100.0)
    forced_exit.consider(failure, now=109.9)
    assert (ended, written) == ([], [])
    forced_exit.consider(failure, now=110.0)
    assert ended == [1]
    assert "stage 2 failed at step 7: ArithmeticError: no\nTraceback of stage 2:" in written[0]
    assert "does not come back from its device 10 s after this failure" in written[0]


class FakeDevice(Clock):
    """A GPU that has reached only the first `done` marks."""

    def __init__(self) -> None:
        self.on_gpu, self.done, self.marks = True, 0, 0

    def mark(self) -> Any:
        self.marks += 1
        return self.marks

    def reached(self, mark: Any) -> bool:
        return mark <= self.done


def test_on_a_device_the_pointer_waits_watchfully_before_the_epilogue():
    device = FakeDevice()
    failed = threading.Event()

    def check() -> None:
        if failed.is_set():
            raise InterruptedError

    pointer = InstructionPointer(check, device)
    placed = list(compile_stage(2, 2, 0).program.placed())
    steps = [p for p in placed if p.step is not None]
    (epilogue, *_) = [p for p in placed if p.step is None]
    for instruction in steps:
        pointer.started(instruction)
        pointer.finished(instruction)
    enqueued = pointer.status().progress
    device.done = 2
    caught: list[BaseException] = []

    def main() -> None:
        try:
            pointer.started(epilogue)
        except InterruptedError as error:
            caught.append(error)

    thread = threading.Thread(target=main)
    thread.start()
    deadline = time.monotonic() + 10
    while pointer.status().progress < enqueued + 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    stuck_at = pointer.status().at
    failed.set()
    thread.join(10)
    assert caught, "a host that waits for its device hears of failures"
    assert stuck_at == f"{steps[2].where}: {steps[2].instruction!r}"


@pytest.mark.parametrize("overlap", [False, True])
def test_the_host_is_no_more_than_three_forwards_ahead_of_its_device(overlap, monkeypatch):
    device = FakeDevice()

    def sleep(_: float) -> None:
        device.done += 1

    monkeypatch.setattr(instruction_pointer.time, "sleep", sleep)
    pointer = InstructionPointer(lambda: None, device)
    forwards: list[int] = []
    leads = []
    for placed in compile_stage(12, 2, 0, overlap=overlap).program.placed():
        if placed.step is None:
            break
        pointer.started(placed)
        if isinstance(placed.instruction, ForwardPass):
            leads.append(sum(mark > device.done for mark in forwards))
        pointer.finished(placed)
        if isinstance(placed.instruction, ForwardPass):
            forwards.append(device.marks)
    assert leads == [0, 1, *[2] * 10]
