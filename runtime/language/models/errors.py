"""The error of this package."""

from __future__ import annotations

from schedcc.io.plain_text import SentenceError


class ModelError(SentenceError):
    """A model that cannot be found, read or evaluated; the message is one sentence for its user."""


def one_line(error: Exception) -> str:
    """Return the message of an error of another library, which may have several lines."""
    if isinstance(error, KeyError):  # its message is the key alone
        return f"there is no entry {' '.join(str(error).split())}"
    return " ".join(str(error).split())
