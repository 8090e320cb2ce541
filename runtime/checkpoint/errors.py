"""The error of this package."""

from runtime.failure.errors import AgreedError


class CheckpointError(AgreedError, ValueError):
    """A checkpoint that cannot be read, written or used; the message is one sentence."""


def one_line(error: Exception) -> str:
    """The message of another library's error, which may have several lines."""
    return " ".join(str(error).split())
