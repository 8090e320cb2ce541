"""What users say in `--model_args`: names of `hf` that ask for nothing here, and what cannot be."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from os import PathLike
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from runtime.language.scoring import ScorerOptions
from schedcc.errors import require_count
from schedcc.io.plain_text import SentenceError

_FETCH = "nothing is downloaded; fetch it first, and give its directory as pretrained"
_FILE = "needed the file itself as pretrained"
_FOLDER = "needed the folder itself as pretrained"
_GGUF = "quantised weights are loaded from GGUF files alone; give such a file as pretrained"
_PLACES = "layers are divided over stages; use stages=S"


class _OfHf(NamedTuple):
    neutral: tuple[Any, ...] | None
    """Values that ask for nothing here; `None`: each of them."""
    why: str = ""
    """Why another one cannot be."""


OF_HF = {
    "backend": _OfHf(("default", "causal"), "needed backend=causal"),
    "revision": _OfHf(("main", None), _FETCH),
    "subfolder": _OfHf(("", None), _FOLDER),
    "truncation": _OfHf((False, None), "what is too long is cut from the left; leave it out"),
    "logits_cache": _OfHf(None),  # how much is computed, and not what
    "mixed_precision_dtype": _OfHf((None,), "everything is computed in one dtype; use dtype"),
    "trust_remote_code": _OfHf(
        (False, None), "code of model directories is never run; leave it out"
    ),
    "use_fast_tokenizer": _OfHf(None),  # transformers 5 does not heed it
    "parallelize": _OfHf((False, None), _PLACES),
    # Without parallelize, hf does not heed these three.
    "max_memory_per_gpu": _OfHf(None),
    "max_cpu_memory": _OfHf(None),
    "offload_folder": _OfHf(None),
    "tp_plan": _OfHf((None,), _PLACES),
    "peft": _OfHf(
        (None, ""), "adapters are not loaded; merge it into the model first (merge_and_unload)"
    ),
    "delta": _OfHf((None, ""), "differences are not loaded; add them to the model first"),
    "autogptq": _OfHf((False, None), _GGUF),
    "gptqmodel": _OfHf((False, None), _GGUF),
    "gguf_file": _OfHf((None,), _FILE),
}
"""The parameters of `lm_eval.models.huggingface.HFLM` that are not ours."""

OF_TRANSFORMERS = {
    "load_in_8bit": _OfHf((False, None), _GGUF),
    "load_in_4bit": _OfHf((False, None), _GGUF),
    "quantization_config": _OfHf((None,), _GGUF),
    **dict.fromkeys(
        (
            "bnb_4bit_compute_dtype",
            "bnb_4bit_quant_type",
            "bnb_4bit_use_double_quant",
            "llm_int8_threshold",
        ),
        _OfHf((None,), _GGUF),
    ),
    "device_map": _OfHf((None,), _PLACES),
    "max_memory": _OfHf((None,), _PLACES),
    "torch_dtype": _OfHf((None,), "needed dtype"),
    "attn_implementation": _OfHf(
        (None,), "attention is what transformers chooses for the model; leave it out"
    ),
    "use_safetensors": _OfHf((True, None), "needed files as transformers chooses them"),
    "variant": _OfHf((None,), "needed files as transformers chooses them"),
    # How fast something is, or how it is fetched, which nothing is here.
    **dict.fromkeys(
        (
            "cache_dir",
            "force_download",
            "local_files_only",
            "low_cpu_mem_usage",
            "proxies",
            "token",
            "use_auth_token",
            "use_cache",
        ),
        _OfHf(None),
    ),
}
"""What users of `hf` hand on to `from_pretrained` of transformers."""


def require_known(other: Mapping[str, Any], ours: Collection[str]) -> None:
    """Refuse arguments that are not ours, unless they are those of `hf` and ask for nothing.

    Args:
        other: What was given beside our own.
        ours: The names of our own.

    Raises:
        ValueError: one that is known and cannot be, or that nobody knows.
    """
    theirs = OF_HF | OF_TRANSFORMERS
    for name, value in other.items():
        if name in theirs:
            neutral, why = theirs[name]
            if neutral is not None and value not in neutral:
                raise SentenceError(f"{name} is {value!r}, which is not supported: {why}")
            continue
        near = get_close_matches(name, [*ours, *theirs], n=1)
        guess = f" (did you mean {near[0]}?)" if near else ""
        raise SentenceError(
            f"{name} is {value!r}, but there is no such argument{guess}, needed one of "
            f"{', '.join(sorted(ours))}"
        )


def require_path(name: str, value: object) -> str:
    """What names a model.

    Raises:
        ValueError: nothing is named, or an object is given.
    """
    if isinstance(value, str | PathLike) and str(value):
        return str(value)
    if value in (None, ""):
        raise ValueError(f"{name} is missing, needed a model directory, a GGUF file, or smollm2")
    raise ValueError(
        f"{name} is of type {type(value).__name__}, needed the path of a model: save an object "
        "first (save_pretrained)"
    )


def require_counts(*, least: int = 1, **values: object) -> None:
    """Refuse what is no integer of at least `least`; `None` is the default of all of them.

    Raises:
        ValueError: one is none.
    """
    for name, value in values.items():
        if value is not None:
            require_count(name, value, least=least)


def require_bools(**values: object) -> None:
    """Refuse what is neither true nor false; a text such as "False" would count as true.

    `None` is the default of all of them.

    Raises:
        ValueError: one is not.
    """
    for name, value in values.items():
        if value is not None and not isinstance(value, bool):
            raise SentenceError(f"{name} is {value!r}, needed True or False")


def seconds(name: str, value: object) -> float:
    """A time that can pass.

    Raises:
        ValueError: it is no number, or cannot.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:  # type: ignore[operator]
        raise SentenceError(f"{name} is {value!r}, needed a finite number of seconds above 0")
    return float(value)  # type: ignore[arg-type]


def scorer_options(
    *,
    dtype: object,
    softmax_dtype: object,
    batch_size: object,
    max_batch_size: int | None,
    partition: Any,
    timeout: float | None,
    **same: Any,
) -> ScorerOptions:
    """How the model is scored; names that are not of `hf` mean what they mean for a scorer.

    Raises:
        ValueError: an argument is none that there is.
    """
    if not isinstance(partition, Sequence):
        raise SentenceError(f"partition is {partition!r}, needed a name or a list of boundaries")
    if timeout is not None:
        same["timeout"] = seconds("timeout", timeout)
    return ScorerOptions(
        dtype="auto" if dtype is None else dtype_name(dtype),
        softmax_dtype=dtype_name(softmax_dtype),
        max_rows=most_rows(batch_size, max_batch_size),
        partition=partition,
        **same,
    )


def most_rows(batch_size: object, max_batch_size: int | None) -> int | None:
    """Sequences of a micro-batch, at most; the command line of the harness hands on a text.

    Raises:
        ValueError: one of them is no number of sequences.
    """
    require_counts(max_batch_size=max_batch_size)
    if isinstance(batch_size, str):
        if re.fullmatch(r"auto(:\d+(\.\d+)?)?", batch_size):
            return max_batch_size
        if batch_size.isdecimal() and int(batch_size) > 0:
            return int(batch_size)
    elif isinstance(batch_size, int) and not isinstance(batch_size, bool) and batch_size > 0:
        return batch_size
    raise SentenceError(f"batch_size is {batch_size!r}, needed an integer of at least 1, or auto")


def dtype_name(dtype: object) -> Any:
    """The name of a dtype, also of one of torch's, or of another name that torch has for it."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    return str(found).removeprefix("torch.") if isinstance(found, torch.dtype) else dtype


def require_tokenizer(value: object) -> PreTrainedTokenizerBase | str | None:
    """A tokenizer, or the directory of one; `None`: that of the model.

    Raises:
        ValueError: it is something else.
    """
    if value in (None, ""):
        return None
    if isinstance(value, PreTrainedTokenizerBase):
        return value
    if isinstance(value, str | PathLike):
        return str(value)
    raise ValueError(
        f"tokenizer is of type {type(value).__name__}, needed the directory of one, or a tokenizer "
        "of transformers"
    )


def end_of_thoughts(token: object, *, needed: bool | None) -> str | int | None:
    """What ends thoughts, as a text or as a token id; digits are an id, as for `hf`.

    Raises:
        ValueError: it is neither, or thoughts are wanted and have no end.
    """
    if needed and token is None:
        raise ValueError("enable_thinking is True, needed a think_end_token as well")
    if isinstance(token, str) and token.isdecimal():
        return int(token)
    if token is None or isinstance(token, str):
        return token
    if isinstance(token, bool) or not isinstance(token, int) or token < 0:
        raise SentenceError(f"think_end_token is {token!r}, needed a text or a token id")
    return token


def template_options(options: object, enable_thinking: bool | None) -> dict[str, Any]:
    """What the chat template is handed.

    Raises:
        ValueError: it has no names.
    """
    if options is not None and not isinstance(options, Mapping):
        raise SentenceError(f"chat_template_args is {options!r}, needed a dict")
    known = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
    return {**(options or {}), **known}
