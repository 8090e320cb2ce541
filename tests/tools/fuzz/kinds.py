"""The kinds of files that are edited, and what is asked of those who read them."""

from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.tools.fuzz.edits import Seed

Edit = Callable[[bytes, Random, list[Seed]], bytes]
"""`(content, random, all seeds) -> content`: the content of a file with a few random edits."""

Read = Callable[[Seed, bytes, Random], str]
"""`(seed, content, random) -> end`: how the reader of an edited file ends, in a word or two.

Raises:
    Exception: of any kind: the reader broke its promise.
"""

LONGEST = 1100
"""Characters of a sentence about a file."""


class Kind(NamedTuple):
    """A kind of file."""

    seeds: list[Seed]
    """Valid ones."""
    edit: Edit
    read: Read


class Listed(NamedTuple):
    """How a kind is made, when it is asked for."""

    module: str
    make: str
    """A function there, which takes a folder of its own."""
    megabytes: int
    """Of address space that reading may take, beyond what the process has with its imports."""

    def __call__(self, folder: Path) -> Kind:
        """The kind, with a folder of its own."""
        made: Kind = getattr(import_module(f"tests.tools.fuzz.{self.module}"), self.make)(folder)
        return made


KINDS = {
    "plan": Listed("commands", "plans", 100),
    "csv": Listed("commands", "csv_files", 100),
    "recording": Listed("commands", "recordings", 100),
    "costs": Listed("commands", "costs", 100),
    "manifest": Listed("models", "manifests", 100),
    "index": Listed("models", "indexes", 100),
    "safetensors": Listed("models", "safetensors_files", 100),
    "gguf": Listed("models", "gguf_files", 200),
    "torch": Listed("models", "torch_files", 200),
    "latest": Listed("models", "latest_files", 100),
    "steps": Listed("models", "encoder_steps", 100),
    "config": Listed("described", "configs", 500),
    "tokenizer": Listed("described", "tokenizers", 500),
    "text": Listed("texts", "plain_texts", 200),
    "jsonl": Listed("texts", "json_lines", 200),
    "compressed": Listed("texts", "compressed_texts", 500),
    "parquet": Listed("texts", "parquet_files", 500),
    "results": Listed("results", "results", 100),
    "message": Listed("ranks", "messages", 100),
    "store": Listed("ranks", "store_files", 100),
    "descriptor": Listed("ranks", "receive_descriptors", 100),
}
"""By name."""


def refused(error: Exception) -> str:
    """The end of a reader that raised the error that it declares.

    Raises:
        AssertionError: the message is no sentence that can be shown in a line.
    """
    sentence = str(error)
    assert sentence.isprintable(), f"a message that is no line: {sentence[:LONGEST]!r}"
    assert 0 < len(sentence) < LONGEST, f"a message of {len(sentence)} characters: {sentence[:300]}"
    return "refused"


def in_words(ends: Counter[str]) -> str:
    """How many ended how."""
    return ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
