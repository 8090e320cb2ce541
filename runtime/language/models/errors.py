"""The error of this package."""

from __future__ import annotations

from schedcc.io.plain_text import SentenceError


class ModelError(SentenceError):
    """A model that cannot be found, read or evaluated; the message is one sentence for its user."""
