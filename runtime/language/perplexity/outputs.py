"""Scores of documents and tokens, a line of JSON each, in files that are whole or not there."""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO
from uuid import uuid4

import torch

from runtime.language.perplexity.scores import exact_loss
from runtime.language.text import Documents
from schedcc.io.plain_text import SentenceError, encodable, visible
from schemas import DocumentScore, TokenScore


class OutputError(SentenceError):
    """Scores cannot be written, which is known before anything is evaluated."""


class UnwrittenError(SentenceError):
    """Scores could not be written when they were there."""


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
                name=encodable(name),
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
        token = tokenizer.convert_ids_to_tokens(token_id)
        yield TokenScore(
            document=document,
            position=position,
            token_id=token_id,
            token=None if token is None else encodable(token),
            loss=loss,
        )


def require_apart(files: Mapping[str, Path | None]) -> None:
    """Refuse two options that mean one file, by whatever names.

    Raises:
        OutputError: naming both.
    """
    seen: list[tuple[str, Path]] = []
    for option, path in files.items():
        if path is None:
            continue
        for other, earlier in seen:
            if _is_same(path, earlier):
                raise OutputError(
                    f"{other} and {option} are both {visible(path)}, needed two files"
                )
        seen.append((option, path))


def _is_same(one: Path, other: Path) -> bool:
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return os.path.samefile(one, other)
    except OSError:  # one is not there
        return False


def require_writable(path: Path) -> None:
    """Find out whether scores can be written, and leave everything as it is.

    Raises:
        OutputError: they cannot.
    """
    try:
        if path.is_dir() or not path.parent.is_dir():
            raise OutputError(
                f"{visible(path)} cannot be written, needed a file in a directory that exists"
            )
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(None, "Permission denied")
        if not _is_written_directly(path):
            with _beside(_place(path)):
                pass
    except OSError as error:
        raise OutputError(_why_not(path, error)) from error


def write_lines(path: Path, models: Iterator[DocumentScore] | Iterator[TokenScore]) -> None:
    """Write a line of JSON for each of them; a file that was there stays until all are written.

    Raises:
        UnwrittenError: the file cannot be written, and what was there is as it was.
    """
    try:
        with _replacing(path) as file:
            for model in models:
                file.write(model.model_dump_json() + "\n")
    except OSError as error:
        raise UnwrittenError(_why_not(path, error)) from error


def _place(path: Path) -> Path:
    """Where links lead."""
    return Path(os.path.realpath(path))


def _why_not(path: Path, error: OSError) -> str:
    return f"{visible(path)} cannot be written: {error.strerror or error}"


@contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """A file that gets its name when it is whole, if `path` is to be a regular file."""
    if _is_written_directly(path):
        with path.open("w", encoding="utf-8") as file:
            yield file
        return
    place = _place(path)
    with _beside(place) as unfinished:
        with unfinished.open("w", encoding="utf-8") as file:
            with suppress(FileNotFoundError):
                unfinished.chmod(stat.S_IMODE(place.stat().st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(place)


@contextmanager
def _beside(place: Path) -> Iterator[Path]:
    """A new file in the directory of `place`, which goes away unless it gets another name."""
    unfinished = place.with_name(f".{uuid4().hex}.unfinished")
    os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield unfinished
    finally:
        with suppress(OSError):
            unfinished.unlink()


def _is_written_directly(path: Path) -> bool:
    """Whether nothing can take the place of `path`: a device, a pipe, an open file of a process.

    Nor can anything where a file may be changed, and its directory may not.
    """
    if not path.exists():
        return False
    directory = _place(path).parent
    return not path.is_file() or _is_descriptor(path) or not os.access(directory, os.W_OK | os.X_OK)


def _is_descriptor(path: Path) -> bool:
    """Whether this is such as `/dev/stdout`, also where that is a file on disk."""
    while path.is_symlink():  # there is no circle: the path leads to a file
        if path.parent.resolve().is_relative_to("/proc"):
            return True
        path = path.parent / path.readlink()
    return False
