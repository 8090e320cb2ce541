"""Whether a tokenizer gives the tokens that its files declare, and those of AutoTokenizer."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.language.models.errors import ModelError
from runtime.language.models.files.directory import read_object
from runtime.language.models.files.names import ADDED_TOKENS, TOKENIZER, TOKENIZER_CONFIG
from schedcc.io.plain_text import one_line

if TYPE_CHECKING:
    from runtime.language.models.files.shape import ModelFiles

_PROBES = (
    "The year 2024, or 1,234.5:  it's",
    "  two spaces\n\n\ttab\r\n and\u00a0more ",
    "na\u00efve cafe\u0301 \u6f22\u5b57 \U0001f389 DON'T don't",
    "def f(x):\n    return x**2  # {'a': [1]}",
)
"""Where rules that cut text into words differ: digits, spaces, contractions, other alphabets."""
_MOST_ADDED = 4000


def require_declared_ids(files: ModelFiles, tokenizer: Any) -> None:
    """Refuse a tokenizer that gives an added token another id than its files declare.

    Raises:
        ModelError: naming the token and both ids, or what is damaged.
    """
    for token, declared in _declared(files.directory):
        found = tokenizer.convert_tokens_to_ids(token)
        if found != declared:
            raise ModelError(
                f"the tokenizer of {files.name} declares that the added token "
                f"{token!r} is {declared}, and it comes to be {found}: "
                "its files are not of one tokenizer"
            )


def difference(tokenizer: Any, other: Any) -> str | None:
    """A text that two tokenizers cut in different ways, if there is one among some that matter."""
    if tokenizer is other:
        return None
    added = dict.fromkeys(
        token.content for each in (tokenizer, other) for token in each.added_tokens_decoder.values()
    )
    probes = [*_PROBES, *(f"a{token}b" for token in islice(added, _MOST_ADDED))]
    ours, theirs = (
        each(probes, add_special_tokens=False, verbose=False)["input_ids"]
        for each in (tokenizer, other)
    )
    return next((text for text, a, b in zip(probes, ours, theirs, strict=True) if a != b), None)


def _declared(directory: Path) -> list[tuple[str, int]]:
    """Added tokens and their ids in all files that may name some: not all of them are always read.

    A list that transformers passes over in favour of another shows by the id that it declares.
    """
    whole, config, legacy = (
        read_object(directory / name) if (directory / name).is_file() else {}
        for name in (TOKENIZER[0], TOKENIZER_CONFIG, ADDED_TOKENS)
    )
    try:
        decoder = config.get("added_tokens_decoder") or {}
        return [
            *((str(entry["content"]), entry["id"]) for entry in whole.get("added_tokens") or ()),
            *((str(entry["content"]), int(index)) for index, entry in decoder.items()),
            *legacy.items(),
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"the added tokens in {directory} are damaged: {one_line(error)}, needed a content and "
            "an id for each"
        ) from error
