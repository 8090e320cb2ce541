"""Scores of documents and tokens, a line of JSON each."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from runtime.language.perplexity.scores import exact_loss
from runtime.language.text import Documents
from schedcc.io.plain_text import SentenceError, visible
from schemas import DocumentScore, TokenScore


class OutputError(SentenceError):
    """Scores cannot be written."""


def document_scores(documents: Documents, losses: torch.Tensor) -> Iterator[DocumentScore]:
    """Every document that has a target.

    Args:
        documents: With their origins.
        losses: Nats, float32 `[tokens]`; NaN where a token is no target.
    """
    assert documents.origins is not None
    names, sizes = documents.origins
    bounds = documents.starts.tolist()
    for number, name in enumerate(names):
        own = slice(bounds[number], bounds[number + 1])
        scored = ~losses[own].isnan()
        if targets := int(scored.sum()):
            loss = exact_loss(losses[own])
            counted = None if sizes is None else sizes[own][scored].sum(0).tolist()
            yield DocumentScore(
                document=number,
                name=name,
                tokens=targets,
                bytes=None if counted is None else counted[0],
                words=None if counted is None else counted[1],
                negative_log_likelihood=loss,
                loss=loss / targets,
            )


def token_scores(
    documents: Documents, losses: torch.Tensor, tokenizer: Any
) -> Iterator[TokenScore]:
    """Every token that is a target, in the order of the text; see `document_scores`."""
    places = (~losses.isnan()).nonzero().flatten()
    owners = torch.searchsorted(documents.starts, places, right=True) - 1
    first = documents.starts[owners] + documents.has_separators
    columns = (places - first, owners, documents.tokens[places], losses[places])
    for position, document, token_id, loss in zip(*(c.tolist() for c in columns), strict=True):
        yield TokenScore(
            document=document,
            position=position,
            token_id=token_id,
            token=tokenizer.convert_ids_to_tokens(token_id),
            loss=loss,
        )


def write_lines(path: Path, models: Iterator[DocumentScore] | Iterator[TokenScore]) -> None:
    """Write a line of JSON for each of them.

    Raises:
        OutputError: the file cannot be written; none is left that was begun.
    """
    begun = False
    try:
        with path.open("w", encoding="utf-8") as file:
            begun = True
            for model in models:
                file.write(model.model_dump_json() + "\n")
    except OSError as error:
        if begun and path.is_file():
            path.unlink()
        name = visible(str(path))
        raise OutputError(f"{name} cannot be written: {error.strerror or error}") from error
