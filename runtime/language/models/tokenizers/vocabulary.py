"""Whether a model knows the tokens that its tokenizer gives."""

from __future__ import annotations

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


def _why_unknown(files: ModelFiles, token_id: int) -> str:
    try:
        added = load_tokenizer(files).added_tokens_decoder.get(token_id)
    except ModelError:
        added = None
    if added is None:
        return "it is the tokenizer of another model"
    return (
        f"{added.content!r} was added to the tokenizer, is in the text, and has no embedding in "
        "this model"
    )
