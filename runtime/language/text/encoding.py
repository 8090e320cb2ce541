"""Tokens of texts, and how many bytes and words of a text each of them stands for.

A tokenizer takes some hundred times the memory of its text, so a long text is tokenized in pieces
that overlap::

    piece 0    [ a b c d e f g h i j ]
    piece 1                [ . . g h i j k l m n o p ]
                                |
                              cut, in the midst of tokens that both have found

A tokenizer finds tokens from left to right within words, so those of a piece differ from those of
the whole text at its two ends at most. Where no run of tokens is the same in both, the first piece
is made longer, up to a bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from runtime.language.models.tokenizers.panics import is_panic
from runtime.language.text.errors import TextError
from schedcc.io.plain_text import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHARACTERS_PER_TOKEN = 16
"""So many characters hold a token, nearly always; else more of the text is read."""

PIECE, OVERLAP = 2**17, 2**12
"""Characters of a piece, and of what it has in common with the next one."""

LONGEST = 2**19
"""Characters of a piece that had to be made longer: some file of some kilobytes holds more."""

RUN = 32
"""Tokens that two pieces have in common before the cut, and behind it."""

Numbers = npt.NDArray[np.int64]


class Encoded(NamedTuple):
    """The tokens of one text."""

    ids: torch.Tensor
    """int64 `[tokens]`."""
    sizes: torch.Tensor | None
    """int32 `[tokens, 2]`: bytes of UTF-8, and words, that begin with each; `None`: not known.

    Over all tokens of a text they add up to its bytes, and to its words between white space.
    """


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[Encoded]:
    """Tokenize texts, each by itself; special tokens are not added.

    Raises:
        TextError: the tokenizer fails, since it has no token for what it does not know, say.
    """
    short = [text for text in texts if len(text) <= PIECE]
    found = iter(_found(tokenizer, short) if short else ())
    return [
        _whole(text, next(found))
        if len(text) <= PIECE
        else _joined([*_parts(tokenizer, text, PIECE)])
        for text in texts
    ]


def encode_beginning(tokenizer: PreTrainedTokenizerBase, text: str, tokens: int) -> Encoded:
    """At least the first `tokens` tokens of a text, if it has so many; the same as of the whole.

    Raises:
        TextError: as of `encode`.
    """
    piece = CHARACTERS_PER_TOKEN * (tokens + RUN) + OVERLAP
    parts: list[Encoded] = []
    for part in _parts(tokenizer, text, min(piece, PIECE)):
        parts.append(part)
        if sum(len(some.ids) for some in parts) >= tokens:
            break
    return _joined(parts)


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts its token for the beginning of a text before one."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("")["input_ids"][:1] == [bos]


class _Piece(NamedTuple):
    """The tokens of a part of a text."""

    start: int
    stop: int
    ids: Numbers
    ends: Numbers | None
    """Where each token ends in the whole text; `None`: not known."""


def _found(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[_Piece]:
    """The tokens of whole texts, each by itself."""
    # Not verbose: a text longer than the model's positions is the rule here, not worth a warning.
    told = bool(tokenizer.is_fast)
    options = {"add_special_tokens": False, "verbose": False, "return_offsets_mapping": told}
    try:
        encoded: Any = tokenizer(list(texts), **options)
    except MemoryError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise TextError(f"the tokenizer cannot encode the text: {one_line(error)}") from error
    offsets = encoded["offset_mapping"] if told else [None] * len(texts)
    return [
        _Piece(
            0,
            len(text),
            np.array(ids, dtype=np.int64),
            None if spans is None else np.array([end for _, end in spans], dtype=np.int64),
        )
        for text, ids, spans in zip(texts, encoded["input_ids"], offsets, strict=True)
    ]


def _parts(tokenizer: PreTrainedTokenizerBase, text: str, length: int) -> Iterator[Encoded]:
    """The tokens of a text, part by part, from pieces of `length` characters or more."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not tokenizer.is_fast or backend is None or backend.pre_tokenizer is None:
        length = len(text)  # one that knows no words sees all of the text

    def piece(start: int, stop: int) -> _Piece:
        found = _found(tokenizer, [text[start:stop]])[0]
        ends = None if found.ends is None else found.ends + start
        return _Piece(start, min(stop, len(text)), found.ids, ends)

    here, begin, first = piece(0, length), 0, 0
    while here.stop < len(text):
        there = piece(here.stop - OVERLAP, here.stop - OVERLAP + length)
        cut = _cut(text, here, there)
        if cut is None:
            if here.stop - here.start >= LONGEST:
                raise TextError(
                    f"characters {here.start} to {here.stop} of the text hold no end of a word "
                    f"where it can be divided, needed one within {LONGEST} characters"
                )
            here = piece(here.start, here.stop + here.stop - here.start)
            assert here.ends is not None
            first = int(np.searchsorted(here.ends, begin, side="right"))
            if begin and (not first or here.ends[first - 1] != begin):  # as in no known tokenizer
                raise TextError(f"the tokens before character {begin} depend on what comes later")
            continue
        assert here.ends is not None
        last, known = cut
        end = int(here.ends[last - 1])
        yield _part(text, here, first, last, begin)
        begin, first, here = end, known, there
    yield _part(text, here, first, len(here.ids), begin)


def _whole(text: str, piece: _Piece) -> Encoded:
    """The tokens of a text that is one piece."""
    return _part(text, piece, 0, len(piece.ids), 0)


def _part(text: str, piece: _Piece, first: int, last: int, begin: int) -> Encoded:
    """The tokens of a piece from `first` on, which stand for the text from `begin` on."""
    ids = torch.from_numpy(piece.ids[first:last].copy())
    if piece.ends is None:
        return Encoded(ids, None)
    is_rest = last == len(piece.ids) and piece.stop == len(text)
    stop = len(text) if is_rest else int(piece.ends[last - 1])
    before = text[begin - 1] if begin else " "
    return Encoded(ids, _sizes(text[begin:stop], piece.ends[first:last] - begin, before))


def _cut(text: str, here: _Piece, there: _Piece) -> tuple[int, int] | None:
    """After how many of its tokens a piece can be left for the next one; `None`: nowhere.

    Returns:
        The number of tokens of `here`, and of those of `there` that come before the cut.
    """
    assert here.ends is not None
    assert there.ends is not None
    middle = there.start + (here.stop - there.start) // 2
    first = max(RUN, int(np.searchsorted(here.ends, middle)))
    for last in range(first, len(here.ids) - RUN):
        end = int(here.ends[last - 1])
        other = int(np.searchsorted(there.ends, end, side="right"))
        if other < RUN or here.ends[last] == end or (text[end - 1] + text[end]).isalnum():
            continue
        mine, its = slice(last - RUN, last + RUN), slice(other - RUN, other + RUN)
        same_ends = np.array_equal(here.ends[mine], there.ends[its])
        if same_ends and np.array_equal(here.ids[mine], there.ids[its]):
            return last, other
    return None


def _joined(parts: Sequence[Encoded]) -> Encoded:
    sizes = [part.sizes for part in parts if part.sizes is not None]
    ids = torch.cat([part.ids for part in parts])
    return Encoded(ids, torch.cat(sizes) if len(sizes) == len(parts) else None)


def _sizes(text: str, ends: Numbers | None, before: str = " ") -> torch.Tensor | None:
    """int32 `[tokens, 2]`: bytes and words of each token, which ends at the character `ends`.

    A character that several tokens make up belongs to the first of them, and what no token stands
    for to the one after it, or to the last. The character before the text says whether a word
    begins with it.
    """
    if ends is None:
        return None
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    width = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    kinds, which = np.unique(points, return_inverse=True)
    is_space = np.array([chr(point).isspace() for point in kinds], dtype=bool)[which]
    begins = ~is_space & np.concatenate([[before.isspace()], is_space[:-1]])[: len(points)]
    places = np.maximum.accumulate(np.concatenate([[0], ends]))
    places[-1:] = len(text) if len(ends) else 0
    sums = np.zeros((len(points) + 1, 2), dtype=np.int64)
    np.cumsum(np.stack([width, begins], axis=1), axis=0, out=sums[1:])
    return torch.from_numpy(np.diff(sums[places], axis=0).astype(np.int32))
