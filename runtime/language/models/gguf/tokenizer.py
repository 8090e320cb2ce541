"""Read the tokenizer of a GGUF file.

A GGUF file holds the vocabulary and the merges of a tokenizer, but only the *name* of the rule that
cuts text into words before they are merged (`tokenizer.ggml.pre`). transformers knows some names,
and takes GPT-2's rule for all others without a word. Where that is wrong, the text still
round-trips, and the perplexity is quietly too high. So for those names the rule is set here, and a
name that neither side knows is an error. It also leaves out keys, forgets which tokens are never
cut, and adds tokens that the file does not have: what the file says is restored here, or refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf import TokenType
from tokenizers import Tokenizer, decoders, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from runtime.language.models.errors import ModelError
from runtime.language.models.gguf.check import OFF, value_of

if TYPE_CHECKING:
    from gguf import GGUFReader

# Names and rules after llama.cpp, src/llama-vocab.cpp.
_DIGITS_SINGLY = frozenset({"codeshell", "command-r", "refact", "smollm", "starcoder"})
_GPT2_RULE = frozenset({"gpt-2", "mpt", "olmo", "phi-2"})
_WHOLE_WORDS_FIRST = frozenset({"falcon3", "llama-bpe", "llama-v3", "llama3", "tekken"})

_PREFIX = "tokenizer.ggml."
_BYTE_LEVEL, _SENTENCEPIECE = "gpt2", "llama"
_READ = ("model", "pre", "tokens", "token_type", "scores", "merges", "add_space_prefix")
_WITHOUT_EFFECT = ("add_bos_token", "add_eos_token", "add_sep_token", "chat_template")
"""What is added around a text, which is evaluated without: see `runtime.language.text.tokenize`."""
_WHOLE = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED)
"""Tokens that are found in a text before it is cut, after llama.cpp."""


def load_gguf_tokenizer(
    path: Path, reader: GGUFReader, directory: str, source: dict[str, Any]
) -> PreTrainedTokenizerFast:
    """Load the tokenizer of the GGUF file at `path`, which lies in `directory` as `source` says.

    Raises:
        ModelError: it is not known how it cuts text.
    """
    kind = value_of(reader, f"{_PREFIX}model")
    _check_metadata(path, reader, kind)
    # Not AutoTokenizer, which reads the whole header twice more to learn the family.
    loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(directory, **source)
    tokens = value_of(reader, f"{_PREFIX}tokens")
    kinds = value_of(reader, f"{_PREFIX}token_type") or [TokenType.NORMAL] * len(tokens)
    backend = _with_whole_tokens(loaded.backend_tokenizer, tokens, kinds)
    if kind == _BYTE_LEVEL:  # the only kind with words
        _restore_word_rule(backend, value_of(reader, f"{_PREFIX}pre"), path)
    elif value_of(reader, f"{_PREFIX}add_space_prefix") is False:
        _leave_the_first_word_alone(backend)
    make: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = make(
        tokenizer_object=backend,
        chat_template=loaded.chat_template,
        **{
            name: getattr(loaded, name)
            for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        },
    )
    for index, token in tokenizer.added_tokens_decoder.items():
        if index >= len(tokens) or tokens[index] != token.content:
            raise ModelError(
                f"{path} has the special token {token.content!r}, which comes to be {index} and is "
                "another in its vocabulary"
            )
    return tokenizer


def _check_metadata(path: Path, reader: GGUFReader, kind: object) -> None:
    """Refuse what would cut text in another way and that nobody reads."""
    if kind not in (_BYTE_LEVEL, _SENTENCEPIECE):
        raise ModelError(
            f"{path} sets {_PREFIX}model to {kind!r}; the supported tokenizers are "
            f"{_BYTE_LEVEL} and {_SENTENCEPIECE}"
        )
    for key, field in reader.fields.items():
        name = key.removeprefix(_PREFIX)
        if name == key or name in (*_READ, *_WITHOUT_EFFECT) or name.endswith("_token_id"):
            continue
        if (value := field.contents()) not in OFF:
            shown = f"{len(value)} values" if isinstance(value, list) else repr(value)
            raise ModelError(
                f"{path} sets {key} to {shown}, which is not supported and may change the tokens"
            )
    if kind == _BYTE_LEVEL and value_of(reader, f"{_PREFIX}add_space_prefix"):
        raise ModelError(
            f"{path} sets {_PREFIX}add_space_prefix to True, which is not supported for the "
            f"tokenizer {kind}"
        )


def _with_whole_tokens(backend: Tokenizer, tokens: list[str], kinds: list[int]) -> Tokenizer:
    """Let the tokens that the file marks as whole be so, and no others that it does not have.

    transformers does not mark those that have other characters than the byte-level alphabet, which
    some files' special tokens do have, and classes of tokenizers add special tokens of their own.
    """
    state = json.loads(backend.to_str())
    vocabulary: dict[str, int] = state["model"]["vocab"]
    spelled = {index: token for token, index in vocabulary.items()}
    merged = {"".join(merge) for merge in state["model"]["merges"]}
    whole = {
        entry["id"]: entry
        for entry in state["added_tokens"]
        if entry["id"] < len(tokens) and entry["content"] == tokens[entry["id"]]
    }
    for index, (token, kind) in enumerate(zip(tokens, kinds, strict=False)):
        # What merges lead to is a word, and was marked by mistake.
        old = spelled.get(index)
        if kind not in _WHOLE or index in whole or old is None or old in merged:
            continue
        del vocabulary[old]
        vocabulary[token] = index
        whole[index] = {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind != TokenType.USER_DEFINED,
        }
    state["added_tokens"] = [whole[index] for index in sorted(whole)]
    return Tokenizer.from_str(json.dumps(state))


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


def _leave_the_first_word_alone(backend: Tokenizer) -> None:
    """Put no space before a text: `add_space_prefix=false`, which transformers passes over."""
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement="▁", prepend_scheme="never", split=False
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
