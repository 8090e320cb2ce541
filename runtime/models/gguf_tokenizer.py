"""Read the tokenizer of a GGUF file.

A GGUF file holds the vocabulary and the merges of a byte-level tokenizer, but only the *name* of
the rule that cuts text into words before they are merged (`tokenizer.ggml.pre`). transformers knows
some names, and takes GPT-2's rule for all others without a word. Where that is wrong, the text
still round-trips, and the perplexity is quietly too high. So for those names the rule is set here,
and a name that neither side knows is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast

from runtime.models.errors import ModelError
from runtime.models.gguf_check import value_of

if TYPE_CHECKING:
    from gguf import GGUFReader
    from tokenizers import Tokenizer

# Names and rules after llama.cpp, src/llama-vocab.cpp.
_DIGITS_SINGLY = frozenset({"codeshell", "command-r", "refact", "smollm", "starcoder"})
_GPT2_RULE = frozenset({"gpt-2", "mpt", "olmo", "phi-2"})
_WHOLE_WORDS_FIRST = frozenset({"falcon3", "llama-bpe", "llama-v3", "llama3", "tekken"})


def load_gguf_tokenizer(
    path: Path, reader: GGUFReader, directory: str, source: dict[str, Any]
) -> PreTrainedTokenizerFast:
    """Load the tokenizer of the GGUF file at `path`, which lies in `directory` as `source` says.

    Raises:
        ModelError: it is not known how it cuts text.
    """
    # Not AutoTokenizer, which reads the whole header twice more to learn the family.
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(
        directory, **source
    )
    if value_of(reader, "tokenizer.ggml.model") == "gpt2":  # byte-level: the only kind with words
        rule = value_of(reader, "tokenizer.ggml.pre")
        _restore_word_rule(tokenizer.backend_tokenizer, rule, path)
    return tokenizer


def _restore_word_rule(backend: Tokenizer, rule: object, path: Path) -> None:
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if rule in _DIGITS_SINGLY:
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, gpt2])
    elif rule in _GPT2_RULE:
        backend.pre_tokenizer = gpt2
    elif isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):  # what unknown names get
        raise ModelError(
            f"{path} cuts text into words by the rule {rule!r} (tokenizer.ggml.pre), which is "
            "not known: use the Hugging Face directory of this model, whose tokenizer.json has it"
        )
    if rule in _WHOLE_WORDS_FIRST:
        # A word that is a token stays one, even where no sequence of merges leads to it.
        backend.model.ignore_merges = True
