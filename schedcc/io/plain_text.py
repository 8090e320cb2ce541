"""Text from outside, such as paths and names in files, as it can be shown on any terminal."""

LONGEST = 1000
"""Characters of a sentence."""

_MEANT = "\n\t"
"""What may stand in a text of several lines."""


class SentenceError(ValueError):
    """An error whose message is one line of some length, whatever names from files are in it."""

    def __init__(self, message: str) -> None:
        """An error that says so."""
        super().__init__(sentence(message))


def visible(text: object, *, lines: bool = False) -> str:
    r"""A text with its control characters, and all else that cannot be printed, as escapes.

    So no name in a file can move the cursor, change colours, end a line or turn its direction.

    >>> print(visible("a\x1b[2J\nb"))
    a\x1b[2J\nb

    Args:
        text: Any text, or what is shown by its `str`.
        lines: Whether line ends and tabs are meant, and stay.
    """
    kept = _MEANT if lines else ""
    return "".join(c if c.isprintable() or c in kept else repr(c)[1:-1] for c in str(text))


def one_line(error: BaseException) -> str:
    """The message of another library's error, which may have several lines."""
    text = " ".join(str(error).split())
    return f"there is no entry {text}" if isinstance(error, KeyError) else text


def encodable(text: str) -> str:
    r"""`text` with escapes for half characters, such as file names that are no UTF-8 have.

    >>> encodable("a\udcff")
    'a\\udcff'
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def sentence(text: str) -> str:
    """A text as `visible` shows it; of a long one the middle is left out."""
    half = LONGEST // 2 - 3
    if len(text) > LONGEST:
        text = f"{text[:half]} ... {text[-half:]}"
    shown = visible(text)
    return shown if len(shown) <= LONGEST else f"{shown[:half]} ... {shown[-half:]}"
