"""Whether a model knows the tokens that its tokenizer gives."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from runtime.language.models.errors import ModelError
from runtime.language.models.files.shape import ModelFiles
from runtime.language.models.tokenizers.loading import load_tokenizer


def check_token_ids(files: ModelFiles, tokens: torch.Tensor) -> None:
    """Reject tokens that the model has no embeddings for; `tokens` are int64, of any shape.

    Raises:
        ModelError: naming the largest token and the size of the vocabulary.
    """
    largest = int(tokens.max()) if tokens.numel() else 0
    if largest >= files.vocabulary_size:
        raise ModelError(
            f"the tokenizer of {files.name} gives the token {largest}, and the model knows "
            f"{files.vocabulary_size} tokens from 0 on: {_why_unknown(files, largest)}"
        )


def require_known_tokens(files: ModelFiles, what: str, tokens: Sequence[int]) -> None:
    """Reject tokens that the model has no embeddings for, whoever gives them.

    Args:
        files: The model.
        what: What messages call that which holds the tokens.
        tokens: Ids of at least 0, at least one.

    Raises:
        ModelError: naming the largest token and the size of the vocabulary.
    """
    if (largest := max(tokens)) < files.vocabulary_size:
        return
    added = _added_token(files, largest)
    why = f": {added!r} was added to the tokenizer, and has no embedding" if added else ""
    raise ModelError(
        f"{what} holds the token {largest}, and {files.name} knows {files.vocabulary_size} tokens, "
        f"from 0 on{why}"
    )


def _why_unknown(files: ModelFiles, token_id: int) -> str:
    added = _added_token(files, token_id)
    if added is None:
        return "it is the tokenizer of another model"
    return (
        f"{added!r} was added to the tokenizer, is in the text, and has no embedding in this model"
    )


def _added_token(files: ModelFiles, token_id: int) -> str | None:
    """The text of a token that was added to the model's tokenizer."""
    try:
        added = load_tokenizer(files).added_tokens_decoder.get(token_id)
    except ModelError:
        return None
    return None if added is None else added.content
