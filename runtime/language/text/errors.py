"""The error of this package."""

from __future__ import annotations

from schedcc.io.plain_text import SentenceError


class TextError(SentenceError):
    """Text that cannot be read or evaluated; the message is one sentence for its user."""


class NoTextError(TextError):
    """A file that can be read holds no text."""
