"""The error of this package."""

from __future__ import annotations


class TextError(ValueError):
    """Text that cannot be read or evaluated; the message is one sentence for its user."""
