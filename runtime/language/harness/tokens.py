"""Tokens as the harness wants them: whose tokenizer, special tokens, what is cut off.

The rules are those of `lm_eval.models.huggingface.HFLM`, so that requests mean the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
from lm_eval.models.utils import configure_pad_token, has_bos_prefix
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedTokenizerBase

from runtime.language.models import ModelError
from runtime.language.models.quiet import LOCAL, quiet_transformers
from runtime.language.scoring import TokenPair
from schedcc.io.plain_text import one_line


def load_tokenizer(
    directory: str | Path | PreTrainedTokenizerBase, config: Any, *, add_bos_token: bool | None
) -> Any:
    """The tokenizer of a directory, as `AutoTokenizer` makes it, with a token for padding.

    Args:
        directory: Of the model, or of a tokenizer alone; or a tokenizer, which stays as it is but
            for the token for padding, as `hf` has it.
        config: The model's configuration, as transformers has it.
        add_bos_token: Whether texts begin with the token for their beginning; `None`: as the
            tokenizer does.

    Raises:
        ModelError: there is no tokenizer that can be read.
    """
    from transformers import AutoTokenizer

    if isinstance(directory, PreTrainedTokenizerBase):
        return configure_pad_token(directory, model_config=config)
    options: dict[str, Any] = {} if add_bos_token is None else {"add_bos_token": add_bos_token}
    loader: Any = AutoTokenizer
    try:
        with quiet_transformers():
            tokenizer = loader.from_pretrained(str(directory), **LOCAL, **options)
    except Exception as error:  # of tokenizers, json and the system, where files are damaged
        raise ModelError(
            f"the tokenizer of {directory} cannot be loaded: {one_line(error)}"
        ) from error
    return configure_pad_token(tokenizer, model_config=config)


def special_tokens(
    text: str, start: str | None, *, add_special_tokens: bool | None, add_bos_token: bool | None
) -> dict[str, bool]:
    """What the tokenizer is told about special tokens; a text that has its start gets no other.

    Args:
        text: What is to be tokenised.
        start: The token for the beginning of a text, as text.
        add_special_tokens: What the caller says.
        add_bos_token: What the user says.
    """
    if add_special_tokens is not None:
        return {"add_special_tokens": add_special_tokens}
    if has_bos_prefix(text, start):
        return {"add_special_tokens": False}
    return {} if add_bos_token is None else {"add_special_tokens": add_bos_token}


def scored_pair(context: Sequence[int], continuation: Sequence[int], max_length: int) -> TokenPair:
    """A pair that fits the model: cut from the left.

    The last token is predicted and not given to the model, so there is room for one more.

    Raises:
        ValueError: the continuation alone is too long.
    """
    if len(continuation) > max_length:
        raise ValueError(
            f"a continuation has {len(continuation)} tokens, needed at most {max_length} (the "
            "max_length of the model)"
        )
    room = max_length + 1 - len(continuation)
    return TokenPair(context[-room:], continuation)


def document_windows(
    tokens: Sequence[int], prefix: int, max_length: int
) -> Iterator[tuple[list[int], list[int]]]:
    """The contexts and continuations that make up a document; each token is predicted once."""
    windows = get_rolling_token_windows(
        token_list=list(tokens), prefix_token=prefix, max_seq_len=max_length, context_len=1
    )
    yield from map(make_disjoint_window, windows)


def chat_text(tokenizer: Any, messages: Sequence[dict[str, str]], **options: Any) -> str:
    """The text of a conversation, without system messages if the template knows none."""
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    except jinja2.exceptions.TemplateError:
        others = [message for message in messages if message["role"] != "system"]
        text = tokenizer.apply_chat_template(others, tokenize=False, **options)
    return str(text)
