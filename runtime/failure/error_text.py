"""The text of any exception, whatever its class does, as it can be told to others."""

from contextlib import suppress

TEXT_LIMIT = 20_000
"""Characters of a text that travel; of a longer one the beginning does."""


def text_of(error: BaseException) -> str:
    """The text of an exception, which can be encoded and is not too long to be told.

    Its class may be anybody's, and raise when it is asked.
    """
    try:
        text = str(error)
    except Exception as raised:
        return f"<its text cannot be shown: {type(raised).__name__}>"
    if len(text) > TEXT_LIMIT:
        text = f"{text[:TEXT_LIMIT]}... ({len(text)} characters)"
    return encodable(text)


def encodable(text: str) -> str:
    """A text with escapes for half characters, which no encoding has."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def note(error: BaseException, text: str) -> None:
    """Add a note to an exception, unless its class lets nobody change it."""
    with suppress(Exception):
        if text not in getattr(error, "__notes__", ()):
            error.add_note(text)
