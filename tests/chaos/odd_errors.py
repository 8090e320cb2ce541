"""Errors that are hard to tell others of, and what their text is by then."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

MEGABYTES = 10

OddError = Literal[
    "text raises",
    "text is no string",
    "long text",
    "text of half characters",
    "cannot be pickled",
    "cannot be changed",
    "exits by exception",
    "keyboard interrupt",
    "own base exception",
]


class TextRaisesError(Exception):
    """Cannot even be printed."""

    def __str__(self) -> str:
        raise ArithmeticError("no text")

    __repr__ = __str__


class TextIsNoneError(Exception):
    """Breaks the promise of `__str__`."""

    def __str__(self) -> str:
        return None  # type: ignore[return-value]


@dataclass(frozen=True)
class FrozenError(Exception):
    """Takes no notes, nor the traceback that Python gives it where a `with` block ends."""

    text: str


class Stop(BaseException):
    """No `Exception`."""


ODD_ERRORS: dict[OddError, tuple[Callable[[], BaseException], str]] = {
    "text raises": (
        TextRaisesError,
        "TextRaisesError: <its text cannot be shown: ArithmeticError>",
    ),
    "text is no string": (
        TextIsNoneError,
        "TextIsNoneError: <its text cannot be shown: TypeError>",
    ),
    "long text": (lambda: ValueError("x" * MEGABYTES * 10**6), "ValueError: xxxx"),
    "text of half characters": (lambda: ValueError("a\udc80\0b"), "ValueError: a\\udc80\\x00b"),
    "cannot be pickled": (lambda: ValueError(threading.Lock()), "ValueError: <unlocked _thread"),
    "cannot be changed": (
        lambda: FrozenError("cold"),
        "FrozenInstanceError: cannot assign to field",
    ),
    "exits by exception": (lambda: SystemExit(3), "SystemExit: 3"),
    "keyboard interrupt": (KeyboardInterrupt, "KeyboardInterrupt: "),
    "own base exception": (lambda: Stop("now"), "Stop: now"),
}
"""What makes each, and what others are told of it."""
