"""Text from outside, made fit for a terminal.

Names of files, models and tensors may hold anything: sequences that recolour or clear a terminal,
line breaks, half characters that no encoding has.
"""


def printable(text: str, *, keep: str = "") -> str:
    r"""`text` with every character that does not print as an escape sequence.

    Args:
        text: From outside.
        keep: Characters that are left as they are.

    >>> printable("a\x1b[31mb\n")
    'a\\x1b[31mb\\n'
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else _escaped(char) for char in text)


def printable_lines(text: str) -> str:
    """`printable`, but what has several lines keeps them."""
    return printable(text, keep="\n\t")


def encodable(text: str) -> str:
    r"""`text` with escape sequences for half characters, such as names that are no UTF-8 have.

    >>> encodable("a\udcff")
    'a\\udcff'
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
