"""Descriptors in reserve, where a process has no others."""

import errno
import os
import signal
import threading
import time
from contextlib import contextmanager

import pytest

from runtime.transport import reserve
from runtime.transport.reserve import COUNT, opened


@pytest.fixture
def held(monkeypatch):
    """What is in reserve in a process that is given no other descriptors."""
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(COUNT)]
    opening = reserve._open

    def refused(file: str, flags: int) -> int:
        if len(held) == COUNT:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), file)
        return opening(file, flags)

    monkeypatch.setattr(reserve, "_held", held)
    monkeypatch.setattr(reserve, "_open", refused)
    yield held
    for descriptor in held:
        os.close(descriptor)


def test_a_file_is_opened_with_what_is_in_reserve(held):
    with opened(os.devnull, os.O_RDONLY) as descriptor:
        assert os.read(descriptor, 1) == b""
        assert len(held) == COUNT - 1
    assert len(held) == COUNT


def test_who_comes_when_the_reserve_is_used_up_hears_what_the_system_said(held, monkeypatch):
    @contextmanager
    def of_another_thread():
        while held:  # it took them before this one had its turn, and did not get them back
            os.close(held.pop())
        yield

    monkeypatch.setattr(reserve, "_lock", of_another_thread())
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)), opened(os.devnull, os.O_RDONLY):
        pass


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_that_is_forked_while_another_thread_has_the_reserve_can_take_it(held):
    has, done = threading.Event(), threading.Event()

    def holds() -> None:
        with reserve._lock:
            has.set()
            done.wait(60)

    thread = threading.Thread(target=holds, daemon=True)
    thread.start()
    assert has.wait(60)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(30)  # ends it where it waits for ever
        reserve.hold()
        os._exit(0)
    done.set()
    thread.join(60)
    until = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        assert time.monotonic() < until, "the child hangs"
        time.sleep(0.01)
    assert ended == (child, 0)
    assert len(held) == COUNT
