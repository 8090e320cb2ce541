"""The error of this package."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, written or used; the message is one sentence."""


def one_line(error: Exception) -> str:
    """The message of another library's error, which may have several lines."""
    return " ".join(str(error).split())
