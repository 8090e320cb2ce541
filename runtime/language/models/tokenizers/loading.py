"""Load the tokenizer that belongs to a model.

Where there is a `tokenizer.json`, it says how text is cut, and the files beside it say which tokens
are added to it. AutoTokenizer would build some families anew from the vocabulary and the merges
alone, with the family's own rule for cutting text into words: SmolLM2, whose files name GPT-2's
class, loses its rule for digits. Where that gives other tokens, one line on standard error says so.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.language.models.errors import ModelError
from runtime.language.models.files.directory import read_object
from runtime.language.models.files.names import MERGES, TOKENIZER, TOKENIZER_CONFIG
from runtime.language.models.files.shape import ModelFiles
from runtime.language.models.quiet import LOCAL, quiet_transformers
from runtime.language.models.tokenizers.check import difference, require_declared_ids
from runtime.language.models.tokenizers.panics import is_panic
from schedcc.io.plain_text import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(files: ModelFiles) -> PreTrainedTokenizerFast:
    """Load the model's tokenizer, from local files only.

    Its tokens are those of `AutoTokenizer`, but for the difference that is named above.

    Raises:
        ModelError: there is none, it cannot be read, it is code, or its files contradict each
            other.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    check_tokenizer(files)
    loader: Any = AutoTokenizer
    exact: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast
    try:
        with quiet_transformers():
            tokenizer = other = loader.from_pretrained(files.directory, **LOCAL)
            of_file = (files.directory / TOKENIZER[0]).is_file()
            if of_file and type(other) is not exact:
                tokenizer = exact.from_pretrained(files.directory, **LOCAL)
                known_to_class = _ends_of_text(tokenizer, other)
                if known_to_class:
                    tokenizer = exact.from_pretrained(files.directory, **LOCAL, **known_to_class)
            # Some settings are looked at only now. Of any other text, there might be no token.
            tokenizer("", verbose=False)
    except BaseException as error:
        # Damaged files surface as exceptions of tokenizers, json and the system, and as panics.
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise ModelError(
            f"the tokenizer of {files.name} cannot be loaded: {one_line(error)}"
        ) from error
    _never_at_random(tokenizer)
    require_declared_ids(files, tokenizer)
    differing = difference(tokenizer, other)
    if differing is not None and os.environ.get("RANK", "0") == "0":  # once for all processes
        print(
            f"the tokens of {files.name} are those of its tokenizer.json; AutoTokenizer would "
            f"build {type(other).__name__} instead, which gives others for {differing!r}",
            file=sys.stderr,
        )
    return tokenizer


def check_tokenizer(files: ModelFiles) -> None:
    """Refuse a model without a tokenizer that can be read, before anything heavy is imported.

    Raises:
        ModelError: there is none, or it is code, or another package is needed to read it.
    """
    _refuse_code(files)
    _require_files(files.directory)


def _require_files(directory: Path) -> None:
    present = [file for file in TOKENIZER if (directory / file).is_file()]
    # Without these, transformers makes a tokenizer of an empty vocabulary.
    if not present:
        raise ModelError(
            f"model directory {directory} has no tokenizer: "
            f"needed {', '.join(TOKENIZER[:-1])} or {TOKENIZER[-1]}"
        )
    if present == ["vocab.json"] and not (directory / MERGES).is_file():
        raise ModelError(
            f"the tokenizer of {directory} is incomplete: it has vocab.json, and merges.txt or "
            "tokenizer.json is needed as well"
        )
    if present[0] == "tokenizer.model" and find_spec("sentencepiece") is None:
        raise ModelError(
            f"{directory / present[0]} can only be read with sentencepiece, which is not "
            "installed: pip install sentencepiece protobuf brings it; a tokenizer.json beside it "
            "would do as well"
        )


def _refuse_code(files: ModelFiles) -> None:
    path = files.directory / TOKENIZER_CONFIG
    code = read_object(path).get("auto_map") if path.is_file() else None
    if isinstance(code, dict):
        code = code.get("AutoTokenizer")
    if code:
        names = [name for name in (code if isinstance(code, list) else [code]) if name]
        raise ModelError(
            f"the tokenizer of {files.name} is code of its own ({', '.join(map(str, names))}, in "
            "auto_map of tokenizer_config.json), and code of model directories is not run; if "
            "tokenizer.json holds all of it, remove auto_map"
        )


def _ends_of_text(tokenizer: Any, other: Any) -> dict[str, str]:
    """The beginning and the end of a text, where only the class of AutoTokenizer knows them."""
    vocabulary = tokenizer.get_vocab()
    return {
        name: getattr(other, name)
        for name in ("bos_token", "eos_token")
        if getattr(tokenizer, name) is None and getattr(other, name) in vocabulary
    }


def _never_at_random(tokenizer: Any) -> None:
    """Switch off the dropout of merges, which is there for training."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and getattr(backend.model, "dropout", None):
        backend.model.dropout = None
