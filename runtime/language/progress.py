"""What a run is at, on standard error: a line that changes on a terminal, a line now and then else.

Nothing here starts a thread, since the processes of a run may be forked.
"""

import sys
import time
from typing import Literal, TextIO

Style = Literal["bar", "lines", "none"]

BAR_SECONDS, LINE_SECONDS = 0.1, 15.0
"""Between two pictures of the bar, and two lines."""
FIRST_LINE_SECONDS = 3.0
"""Until the first line of an evaluation, which says how long all of it will take."""
_WIDTH = 24
_ERASE = "\r\x1b[K"


def style_for(stream: TextIO, *, quiet: bool) -> Style:
    """How to show progress on a stream."""
    if quiet:
        return "none"
    return "bar" if stream.isatty() else "lines"


class Display:
    """Says what a run is at."""

    def __init__(self, style: Style, stream: TextIO | None = None) -> None:
        """Write to `stream`; default: standard error."""
        self._style, self._stream = style, stream or sys.stderr
        self._began = self._shown = time.monotonic()
        self._first: tuple[int, int] | None = None
        self._drawn = False

    def phase(self, what: str) -> None:
        """The run begins with something."""
        if self._style == "bar":
            self._draw(f"{what} ...")
        elif self._style == "lines":
            self._write(f"pipeval: {what}\n")

    def begin(self, done: int, tokens: int) -> None:
        """Evaluation begins, after so many micro-batches and tokens of an earlier part of it."""
        self._began, self._first = time.monotonic(), (done, tokens)
        self._shown = self._began - (LINE_SECONDS - FIRST_LINE_SECONDS)

    def is_due(self, *, last: bool) -> bool:
        """Whether it is time to say something again; nobody need compute what is not shown."""
        pause = {"bar": BAR_SECONDS, "lines": LINE_SECONDS, "none": float("inf")}[self._style]
        if self._style == "bar" and last:
            return True
        return time.monotonic() - self._shown >= pause

    def progress(
        self, done: int, total: int, tokens: int, loss: float, error: float | None
    ) -> None:
        """So many micro-batches of `total` are done, and so many tokens.

        Args:
            done: Micro-batches.
            total: All of them.
            tokens: That have been predicted.
            loss: So far, nats per token.
            error: Its standard error.
        """
        self._shown = now = time.monotonic()
        first, first_tokens = self._first or (0, 0)
        seconds = max(now - self._began, 1e-9)
        left = seconds / max(1, done - first) * (total - done)
        known = "" if error is None else f" \u00b1 {error:.4f}"
        text = (
            f"{done}/{total} micro-batches, loss {loss:.4f}{known}, "
            f"{(tokens - first_tokens) / seconds:.0f} tokens/s, {clock(left)} left"
        )
        if self._style == "bar":
            full = _WIDTH * done // total
            self._draw(f"{'#' * full}{'-' * (_WIDTH - full)} {text}")
        else:
            self._write(f"pipeval: {text}\n")

    def clear(self) -> None:
        """Leave the terminal as it was."""
        if self._drawn:
            self._write(_ERASE)
        self._drawn = False

    def _draw(self, text: str) -> None:
        self._shown, self._drawn = time.monotonic(), True
        self._write(f"{_ERASE}{text}")

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError, UnicodeError):  # nobody looks any more, or cannot read it
            self._style = "none"


def clock(seconds: float) -> str:
    """A duration, for people.

    >>> clock(59.6), clock(3725)
    ('1:00', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
