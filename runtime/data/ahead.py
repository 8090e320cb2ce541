"""A thread that asks a loader for what comes next, while the rank computes.

What it has got waits here until the main thread collects it, so nothing that the main thread sees
changes while it looks.
"""

import atexit
import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")

THREAD = "schedcc fetches"

LOOK_SECONDS = 0.05
"""Between two looks at whether the run has failed elsewhere."""

CLOSE_SECONDS = 1.0
"""How long a thread is waited for which is in the midst of something that nobody needs any more."""

_left: list[tuple[Any, threading.Thread]] = []
"""Loaders that were not waited for any longer, and the threads that are still in the midst."""


def wait_until_free(loader: Any, check: Callable[[], None]) -> None:
    """Wait until no thread of an evaluation that has failed is in the midst of a loader.

    Args:
        loader: Is to be used anew.
        check: Called meanwhile; raises if it is waited for in vain.
    """
    _left[:] = [(used, thread) for used, thread in _left if thread.is_alive()]
    for used, thread in [*_left]:
        while used is loader and thread.is_alive():
            check()
            thread.join(LOOK_SECONDS)


@atexit.register
def _wait_for_all() -> None:
    """Python ends such threads wherever they are, and if that is C++, with the whole process."""
    until = time.monotonic() + CLOSE_SECONDS
    for _, thread in _left:
        thread.join(max(0.0, until - time.monotonic()))


class Ahead(Generic[T]):
    """Makes things in a thread, a bounded number ahead of their use."""

    def __init__(
        self,
        make: Callable[[], tuple[T, int] | None],
        loader: Any,
        *,
        most: int,
        most_bytes: int,
    ) -> None:
        """Start.

        Args:
            make: The next thing, and its size in bytes; `None`: that was all. Called by one thread,
                in a copy of the present context, with torch's modes as they are now: of gradients,
                inference and autocast on the CPU, and the current GPU.
            loader: What `make` uses, see `wait_until_free`.
            most: So many may be there that are not used, at most.
            most_bytes: Of them: the one that goes beyond is the last.

        Raises:
            RuntimeError: the system gives no thread.
        """
        self._loader = loader
        self._most, self._most_bytes = most, most_bytes
        self._changed = threading.Condition()
        self._here: deque[T] = deque()
        self._unused: deque[int] = deque()
        """The sizes of what is here, and of what was collected and is not used."""
        self._wanted = 0
        """So many are to be unused, whatever the bounds: somebody waits for them."""
        self._closed = self._ended = False
        self._error: BaseException | None = None
        context, modes = contextvars.copy_context(), _modes()
        # A daemon: a loader that never comes back holds up no end of the process.
        self._thread = threading.Thread(
            target=context.run, args=(self._run, make, modes), name=THREAD, daemon=True
        )
        self._thread.start()

    def collect(self, least: int, check: Callable[[], None]) -> tuple[list[T], bool]:
        """What is here, and whether nothing comes after it.

        Args:
            least: So many are waited for, unless there are fewer.
            check: Called meanwhile; raises if it is waited for in vain.

        Raises:
            BaseException: that of `make`, if there are fewer because of it.
        """
        with self._changed:
            self._wanted = len(self._unused) - len(self._here) + least
            self._changed.notify_all()
            while len(self._here) < least and not self._ended:
                check()
                self._changed.wait(LOOK_SECONDS)
            self._wanted = 0
            found = list(self._here)
            self._here.clear()
            error = self._error
            if error is None or len(found) >= least:
                return found, self._ended and error is None
        try:
            raise error
        finally:  # its traceback holds this frame, and that of the thread
            self._error = error = None

    def used(self) -> None:
        """The first of what was unused is used now."""
        with self._changed:
            self._unused.popleft()
            if self._has_room():
                self._changed.notify_all()

    def close(self) -> None:
        """Go no further, and wait for the end of the thread, for a bounded time."""
        with self._changed:
            self._closed = True
            self._here.clear()
            self._changed.notify_all()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            _left.append((self._loader, self._thread))

    def _is_full(self) -> bool:
        within = len(self._unused) < self._most and sum(self._unused) < self._most_bytes
        return len(self._unused) >= self._wanted and not within

    def _has_room(self) -> bool:
        """Whether a thread that found all full is to go on; not for one thing at a time."""
        half = len(self._unused) <= self._most // 2 and sum(self._unused) < self._most_bytes
        return len(self._unused) < self._wanted or half

    def _may_go_on(self) -> bool:
        """Wait for room; whether there is still somebody who makes it."""
        with self._changed:
            if self._is_full():
                self._changed.wait_for(lambda: self._closed or self._has_room())
            return not self._closed

    def _run(self, make: Callable[[], tuple[T, int] | None], modes: "_Modes") -> None:
        try:
            with modes():
                while self._may_go_on() and (made := make()) is not None:
                    with self._changed:
                        self._here.append(made[0])
                        self._unused.append(made[1])
                        del made
                        self._changed.notify_all()
        except BaseException as error:  # it is the main thread's
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()


_Modes = Callable[[], AbstractContextManager[None]]


def _modes() -> _Modes:
    """What enters, in another thread, the modes of torch that are this thread's now."""
    with_gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    autocast, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    gpu = torch.cuda.device(torch.cuda.current_device()) if on_gpu else nullcontext()

    @contextmanager
    def entered() -> Iterator[None]:
        with (
            torch.inference_mode(inference),
            torch.set_grad_enabled(with_gradients),
            torch.autocast("cpu", dtype, enabled=autocast),
            gpu,
        ):
            yield

    return entered
