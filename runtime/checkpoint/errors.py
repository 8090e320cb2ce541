"""The error of this package."""

from runtime.failure.errors import AgreedError
from schedcc.io.plain_text import SentenceError


class CheckpointError(AgreedError, SentenceError):
    """A checkpoint that cannot be read, written or used; the message is one sentence."""


def require_layers(where: object, found: int, needed: int) -> None:
    """Refuse a checkpoint of `found` layers for a model of another number.

    Raises:
        CheckpointError: naming both.
    """
    if found != needed:
        raise CheckpointError(f"{where} holds {found} layers, and the model has {needed}")
