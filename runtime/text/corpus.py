"""The text to evaluate on."""

from __future__ import annotations

from pathlib import Path

from runtime.text.errors import TextError


def default_text() -> str:
    """Return the Python language reference, as the interpreter's own `help()` has it.

    Some 470,000 characters of English prose and code that every Python brings along; it differs
    between versions of Python.
    """
    from pydoc_data.topics import topics

    return "\n\n".join(topics.values())


def read_text(path: Path) -> str:
    r"""Read a UTF-8 text file; its line ends become `\n`, and a byte order mark goes.

    Raises:
        TextError: no such file, a directory, not UTF-8, or nothing but white space.
    """
    if path.is_dir():
        raise TextError(f"text file {path} is a directory, and a file is needed")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(
            f"text file {path} is not UTF-8: {error.reason} at byte {error.start}"
        ) from error
    except OSError as error:
        raise TextError(f"text file {path} cannot be read: {error.strerror}") from error
    if not text.strip():
        raise TextError(
            f"text file {path} holds no text, only {len(text)} characters of white space"
        )
    return text
