"""Turn texts into documents of tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import accumulate, chain, islice
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from runtime.language.text.corpus import Text
from runtime.language.text.errors import TextError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DocumentMode = Literal["whole", "lines", "packed"]
"""What a document is, and what its tokens are predicted from.

========  ===========  =====================================================  ====================
          a document   a token is predicted from                              no targets
========  ===========  =====================================================  ====================
whole     a text       the tokens before it in its window                     each window's first
lines     a line       those before it in its document, the separator first   separators
packed    a line       the tokens before it in its window, other documents'   separators, and each
                       among them                                             window's first
========  ===========  =====================================================  ====================
"""

LINES_AT_ONCE = 1000
"""Lines that are tokenized together."""


class Documents(NamedTuple):
    """All documents in one row of tokens, with a separator before each unless texts are whole."""

    tokens: torch.Tensor
    """int64 `[tokens]`."""
    starts: torch.Tensor
    """int64 `[documents + 1]`: where in the row each document begins, and where the last ends."""
    mode: DocumentMode = "whole"
    separator: int = 0
    """The token before each document, where there is one."""

    @classmethod
    def whole(cls, *documents: torch.Tensor) -> Documents:
        """Texts without separators, int64 `[tokens]` each."""
        starts = list(accumulate(map(len, documents), initial=0))
        return cls(torch.cat(documents), torch.tensor(starts))


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    """The tokens of a text, int64 `[tokens]`; special tokens are not added."""
    return _row(_encode(tokenizer, [text])[0])


def tokenize_documents(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[Text],
    *,
    documents: DocumentMode = "whole",
    separator_id: int | None = None,
) -> Documents:
    """Tokenize `texts`.

    Args:
        tokenizer: of the model that will see the tokens; its own special tokens are not added.
        texts: what to tokenize, in order.
        documents: `whole`: a text is one document. `lines` and `packed`: every line that is not
            blank is one, with a separator before it.
        separator_id: the separator; None: the tokenizer's token for the beginning of a text, or
            else the one for its end.

    Raises:
        TextError: a separator that is not in the vocabulary, or none where one is needed, or one
            where none is used.
    """
    if documents == "whole":
        require_no_separator(separator_id)
        return Documents.whole(*(tokenize(tokenizer, text.content) for text in texts))
    separator = _separator(tokenizer, separator_id)
    parts: list[torch.Tensor] = []
    lengths: list[int] = []
    lines = (line for text in texts for line in _lines(text.content))
    while some := list(islice(lines, LINES_AT_ONCE)):
        encoded = [[separator, *ids] for ids in _encode(tokenizer, some) if ids]
        parts.append(_row(chain.from_iterable(encoded)))
        lengths += map(len, encoded)
    if not lengths:
        raise TextError("the tokenizer makes no token of the text, and at least one is needed")
    starts = torch.tensor(list(accumulate(lengths, initial=0)))
    return Documents(torch.cat(parts), starts, documents, separator)


def require_no_separator(separator_id: int | None) -> None:
    """Refuse a separator for texts that are not divided.

    Raises:
        TextError: there is one.
    """
    if separator_id is not None:
        raise TextError(
            f"separator_id is {separator_id}, but documents is 'whole', which uses none: "
            "needed documents 'lines' or 'packed'"
        )


def _lines(text: str) -> Iterator[str]:
    lines = (match.group() for match in re.finditer("[^\n]+", text))  # one at a time
    return (line for line in lines if line.strip())


def _row(ids: Iterable[int]) -> torch.Tensor:
    return torch.tensor(list(ids), dtype=torch.int64)


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    # Not verbose: a text longer than the model's positions is the rule here, not worth a warning.
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _separator(tokenizer: PreTrainedTokenizerBase, separator_id: int | None) -> int:
    for token_id in (separator_id, tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            break
    else:
        raise TextError(
            "documents need a separator, and this tokenizer has no token for the beginning or the "
            "end of a text: give separator_id"
        )
    if not 0 <= token_id < len(tokenizer):
        raise TextError(
            f"separator_id is {token_id}, and the vocabulary has ids 0 to {len(tokenizer) - 1}"
        )
    return token_id
