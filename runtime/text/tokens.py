"""Turn text into one row of tokens."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Literal

import torch

from runtime.text.errors import TextError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    documents: Literal["whole", "lines"] = "whole",
    separator_id: int | None = None,
) -> torch.Tensor:
    """Return the tokens of `text`, int64 [tokens].

    Args:
        tokenizer: of the model that will see the tokens; its own special tokens are not added.
        text: what to tokenize.
        documents: `whole`: the text is one document. `lines`: every line that is not blank is a
            document, and a separator comes before each.
        separator_id: the separator; None: the tokenizer's token for the beginning of a text, or
            else the one for its end.

    Raises:
        TextError: a separator that is not in the vocabulary, or none where one is needed.
    """
    if documents == "whole":
        (ids,) = _encode(tokenizer, [text])
        return torch.tensor(ids, dtype=torch.int64)
    separator = _separator(tokenizer, separator_id)
    lines = [line for line in text.split("\n") if line.strip()]
    pieces = ((separator, *ids) for ids in _encode(tokenizer, lines))
    return torch.tensor(list(chain.from_iterable(pieces)), dtype=torch.int64)


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
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
