"""The error of this package."""

from __future__ import annotations


class ModelError(ValueError):
    """A model that cannot be found, read or evaluated; the message is one sentence for its user."""
