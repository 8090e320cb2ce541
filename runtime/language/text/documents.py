"""Turn texts into documents of tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from runtime.language.text.corpus import Text
from runtime.language.text.encoding import adds_bos, encode, encode_beginning
from runtime.language.text.errors import TextError
from runtime.language.text.records import require_characters

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DocumentMode = Literal["whole", "texts", "lines", "packed"]
"""What a document is, and what its tokens are predicted from. A text is a file, or a record of
JSON or parquet; a record is one document in every mode.

========  ===========  =====================================================  ====================
          a document   a token is predicted from                              no targets
========  ===========  =====================================================  ====================
whole     a text       the tokens before it in its window                     each window's first
texts     a text       those before it in its document, the separator first   separators
lines     a line       those before it in its document, the separator first   separators
packed    a line       the tokens before it in its window, other documents'   separators, and each
                       among them                                             window's first
========  ===========  =====================================================  ====================

Where windows begin with a token for the beginning of a text, and where they overlap, their first
token is a target like the others.
"""

LINES_AT_ONCE = 1000
"""Lines that are tokenized together."""


class Origins(NamedTuple):
    """Where documents come from, on the stage that has read them."""

    names: list[str]
    """Of each document."""
    sizes: torch.Tensor | None
    """int32 `[tokens, 2]`: bytes and words of each token, see `Encoded`; `None`: not known."""


class Documents(NamedTuple):
    """All documents in one row of tokens, with a separator before each unless texts are whole."""

    tokens: torch.Tensor
    """int64 `[tokens]`."""
    starts: torch.Tensor
    """int64 `[documents + 1]`: where in the row each document begins, and where the last ends."""
    mode: DocumentMode = "whole"
    separator: int = 0
    """The token before each document, where there is one."""
    bos: int | None = None
    """The token before each window that does not begin with a separator, if there is one."""
    origins: Origins | None = None

    @classmethod
    def whole(cls, *documents: torch.Tensor) -> Documents:
        """Texts without separators, int64 `[tokens]` each."""
        starts = list(accumulate(map(len, documents), initial=0))
        return cls(torch.cat(documents), torch.tensor(starts))

    @property
    def is_each_alone(self) -> bool:
        """Whether each document is predicted by itself, from its first token on."""
        return self.mode in ("texts", "lines")

    @property
    def has_separators(self) -> bool:
        """Whether each document begins with a separator."""
        return self.mode != "whole"


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    """The tokens of a text, int64 `[tokens]`; special tokens are not added."""
    return encode(tokenizer, [text])[0].ids


def tokenize_documents(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[Text],
    *,
    documents: DocumentMode = "whole",
    separator_id: int | None = None,
    bos: bool | None = False,
    enough: Callable[[Documents], bool] | None = None,
    beginning: int | None = None,
) -> Documents:
    """Tokenize `texts`.

    Args:
        tokenizer: of the model that will see the tokens; its own special tokens are not added.
        texts: what to tokenize, in order; conversations are written out by its chat template.
        documents: `whole`, `texts`: a text is a document. `lines` and `packed`: every line that is
            not blank is one. All but `whole` have a separator before each.
        separator_id: the separator; None: the tokenizer's token for the beginning of a text, or
            else the one for its end.
        bos: whether windows begin with the token for the beginning of a text; None: where documents
            are `whole` or `packed`, if the tokenizer itself puts it before a text.
        enough: asked now and then whether the documents so far will do.
        beginning: how many tokens of a text that is whole will do.

    Raises:
        TextError: a separator that is not in the vocabulary, or none where one is needed, or one
            where none is used; no token for the beginning of a text where one is wanted.
    """
    separator = 0
    if documents == "whole":
        require_no_separator(separator_id)
    else:
        separator = _separator(tokenizer, separator_id)
    row = _Row(tokenizer, documents, separator, _bos(tokenizer, documents, bos))
    # Templates begin with the token that stands before documents and windows already.
    unwanted = tokenizer.bos_token_id in (separator if documents != "whole" else None, row.bos)
    pieces = _pieces(tokenizer, texts, documents, tokenizer.bos_token if unwanted else None)
    ask = beginning or 1
    # Texts may be long, and lines are many.
    while some := list(islice(pieces, 1 if documents == "whole" else LINES_AT_ONCE)):
        row.add(some, beginning if documents == "whole" else None)
        if enough is not None and row.length >= ask:
            ask = 2 * row.length
            if enough(row.documents()):
                break
    if not row.lengths:
        raise TextError("the tokenizer makes no token of the text, and at least one is needed")
    return row.documents()


class _Row:
    """Documents that come one after the other."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        mode: DocumentMode,
        separator: int,
        bos: int | None,
    ) -> None:
        self._tokenizer, self._mode, self._separator, self.bos = tokenizer, mode, separator, bos
        self._parts: list[torch.Tensor] = []
        self._sizes: list[torch.Tensor] | None = []
        self._names: list[str] = []
        self.lengths: list[int] = []
        self.length = 0

    def add(self, some: list[tuple[str, str]], beginning: int | None) -> None:
        """Tokenize documents, named each; of one alone the `beginning` may do."""
        if beginning is None:
            found = encode(self._tokenizer, [content for _, content in some])
        else:
            found = [encode_beginning(self._tokenizer, text, beginning) for _, text in some]
        separators = [] if self._mode == "whole" else [self._separator]
        before = torch.tensor(separators, dtype=torch.int64)
        none = torch.zeros(len(before), 2, dtype=torch.int32)
        ids: list[torch.Tensor] = []
        sizes: list[torch.Tensor] = []
        for (name, _), encoded in zip(some, found, strict=True):
            if not len(encoded.ids) and len(before):
                continue
            self._names.append(name)
            self.lengths.append(len(before) + len(encoded.ids))
            ids += [before, encoded.ids]
            if encoded.sizes is None:
                self._sizes = None
            else:
                sizes += [none, encoded.sizes]
        part = torch.cat([before[:0], *ids])
        self._parts.append(part)
        self.length += len(part)
        if self._sizes is not None and sizes:
            self._sizes.append(torch.cat(sizes))

    def documents(self) -> Documents:
        """All so far."""
        if len(self._parts) > 1:
            self._parts = [torch.cat(self._parts)]
            self._sizes = None if self._sizes is None else [torch.cat(self._sizes)]
        return Documents(
            self._parts[0] if self._parts else torch.empty(0, dtype=torch.int64),
            torch.tensor([*accumulate(self.lengths, initial=0)]),
            self._mode,
            self._separator,
            self.bos,
            Origins(self._names, self._sizes[0] if self._sizes else None),
        )


def require_no_separator(separator_id: int | None) -> None:
    """Refuse a separator for texts that are not divided.

    Raises:
        TextError: there is one.
    """
    if separator_id is not None:
        raise TextError(
            f"separator_id is {separator_id}, but documents is 'whole', which uses none: "
            "needed documents 'texts', 'lines' or 'packed'"
        )


def _pieces(
    tokenizer: Any, texts: Iterable[Text], documents: DocumentMode, unwanted: Any
) -> Iterator[tuple[str, str]]:
    """The documents in `texts`, with their names."""
    for name, content, is_record in texts:
        if not isinstance(content, str):
            yield name, _conversation(tokenizer, content, name).removeprefix(unwanted or "")
        elif is_record or documents in ("whole", "texts"):
            yield name, content
        else:
            lines = re.finditer("[^\n]+", content)  # one at a time
            yield from ((name, match.group()) for match in lines if match.group().strip())


def _conversation(tokenizer: Any, messages: Any, name: str) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise TextError("the tokenizer of this model has no chat template, and one was asked for")
    try:
        written: str = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception as error:  # templates are programs, and raise what they like
        raise TextError(f"{name}: the chat template refuses the conversation: {error}") from error
    require_characters(written, name)
    return written


def _bos(
    tokenizer: PreTrainedTokenizerBase, documents: DocumentMode, wanted: bool | None
) -> int | None:
    if wanted is None:
        wanted = documents in ("whole", "packed") and adds_bos(tokenizer)
    if not wanted:
        return None
    found: int | None = tokenizer.bos_token_id
    if found is None:
        raise TextError(
            "--bos puts the token for the beginning of a text before every window, and this "
            "tokenizer has none"
        )
    return found


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
