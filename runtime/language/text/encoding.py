"""Tokens of texts, and how many bytes and words of a text each of them stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHARACTERS_PER_TOKEN = 16
"""So many characters hold a token, nearly always; else more of the text is read."""

_MARGIN = 64
"""Tokens before the end of a part of a text that may be others than in the whole text."""


class Encoded(NamedTuple):
    """The tokens of one text."""

    ids: list[int]
    sizes: torch.Tensor | None
    """int32 `[tokens, 2]`: bytes of UTF-8, and words, that begin with each; `None`: not known.

    Over all tokens of a text they add up to its bytes, and to its words between white space.
    """


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[Encoded]:
    """Tokenize texts, each by itself; special tokens are not added."""
    # Not verbose: a text longer than the model's positions is the rule here, not worth a warning.
    told = bool(tokenizer.is_fast)
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False, return_offsets_mapping=told)
    ids: list[list[int]] = encoded["input_ids"]
    if not told:
        return [Encoded(row, None) for row in ids]
    offsets: list[list[tuple[int, int]]] = encoded["offset_mapping"]
    return [
        Encoded(row, _sizes(text, [end for _, end in spans]))
        for row, text, spans in zip(ids, texts, offsets, strict=True)
    ]


def encode_beginning(tokenizer: PreTrainedTokenizerBase, text: str, tokens: int) -> Encoded:
    """At least the first `tokens` tokens of a text, if it has so many; the same as of the whole.

    Tokens are found from left to right within words, so those of a part of a text differ from the
    whole's at most at its end. A tokenizer that knows no words sees all of the text; of others,
    two parts, one twice as long, have to agree, or more is read.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    length = CHARACTERS_PER_TOKEN * (tokens + _MARGIN)
    if backend is None or backend.pre_tokenizer is None:
        length = len(text)
    while 2 * length < len(text):
        short, long = encode(tokenizer, [text[:length], text[: 2 * length]])
        kept = len(short.ids) - _MARGIN
        if kept >= tokens and short.ids[:kept] == long.ids[:kept]:
            return Encoded(short.ids[:kept], None if short.sizes is None else short.sizes[:kept])
        length *= 2
    return encode(tokenizer, [text])[0]


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts its token for the beginning of a text before one."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("")["input_ids"][:1] == [bos]


def _sizes(text: str, ends: Sequence[int]) -> torch.Tensor:
    """int32 `[tokens, 2]`: bytes and words of each token, which ends at the character `ends`.

    A character that several tokens make up belongs to the first of them, and what no token stands
    for to the one after it, or to the last.
    """
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    width = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    kinds, which = np.unique(points, return_inverse=True)
    is_space = np.array([chr(point).isspace() for point in kinds], dtype=bool)[which]
    begins = ~is_space & np.concatenate([[True], is_space[:-1]])[: len(points)]
    places = np.maximum.accumulate(np.array([0, *ends], dtype=np.int64))
    places[-1:] = len(text) if len(ends) else 0
    sums = np.zeros((len(points) + 1, 2), dtype=np.int64)
    np.cumsum(np.stack([width, begins], axis=1), axis=0, out=sums[1:])
    return torch.from_numpy(np.diff(sums[places], axis=0).astype(np.int32))
