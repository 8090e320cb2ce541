"""Load the tokenizer that belongs to a model.

Where there is a `tokenizer.json`, it is the whole tokenizer, and is taken as it is. AutoTokenizer
would build some families anew from the vocabulary and the merges alone, with the family's own rule
for cutting text into words: SmolLM2, whose files name GPT-2's class, loses its rule for digits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.models.errors import ModelError, one_line
from runtime.models.locate import ModelFiles
from runtime.models.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_tokenizer(files: ModelFiles) -> PreTrainedTokenizerFast:
    """Load the model's tokenizer, from local files only.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    exact = files.directory / _TOKENIZER_FILES[0]
    # Without these, transformers makes a tokenizer of an empty vocabulary.
    if not any((files.directory / file).is_file() for file in _TOKENIZER_FILES):
        raise ModelError(
            f"model directory {files.directory} has no tokenizer: "
            f"needed {', '.join(_TOKENIZER_FILES[:-1])} or {_TOKENIZER_FILES[-1]}"
        )
    loader: Any = AutoTokenizer
    make: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast
    try:
        with quiet_transformers():
            tokenizer = loader.from_pretrained(files.directory, local_files_only=True)
            if exact.is_file():
                tokenizer = make(
                    tokenizer_object=Tokenizer.from_file(str(exact)),
                    bos_token=tokenizer.bos_token,
                    eos_token=tokenizer.eos_token,
                )
    except Exception as error:
        # Damaged files surface as exceptions of tokenizers, json and the system.
        raise ModelError(
            f"the tokenizer of {files.name} cannot be loaded: {one_line(error)}"
        ) from error
    return tokenizer
