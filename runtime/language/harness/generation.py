"""What the harness asks of a generation: how long it may be, and what ends it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)

from runtime.language.models.quiet import LOCAL
from schedcc.io.plain_text import SentenceError, one_line

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "bad_words_ids": (),
    "sequence_bias": (),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1.0,),
    "penalty_alpha": (),
    "dola_layers": (),
    "watermarking_config": (),
    "diversity_penalty": (0.0,),
    "constraints": (),
    "force_words_ids": (),
    "token_healing": (False,),
    "stop_strings": (),
    "max_time": (),
    "cache_implementation": (
        "dynamic",
        "static",
        "offloaded",
        "offloaded_static",
        "sliding_window",
        "hybrid",
        "hybrid_chunked",
        "offloaded_hybrid",
        "offloaded_hybrid_chunked",
    ),
}
"""Settings of transformers that change what greedy generation gives, and values that do not."""

_OF_SAMPLING = {
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p"),
    *("epsilon_cutoff", "eta_cutoff"),
}
"""Settings without a meaning where nothing is drawn."""

_WITHOUT_EFFECT = {
    *("length_penalty", "early_stopping", "low_memory"),  # of beams, and of contrastive search
    "renormalize_logits",  # which leaves the order of the logits as it is
    *("use_cache", "cache_config", "max_cache_len", "prefill_chunk_size"),
    *("compile_config", "disable_compile", "synced_gpus"),
    *("output_attentions", "output_hidden_states", "output_logits", "output_scores"),
    *("bos_token_id", "pad_token_id", "decoder_start_token_id"),  # rows begin with their contexts
    # Drafts, of which only those tokens are kept that the model itself would have chosen.
    *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"),
    *("assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind"),
    *("assistant_early_exit", "prompt_lookup_num_tokens", "max_matching_ngram_size", "use_mtp"),
    "remove_invalid_values",
}
"""Settings that no value of changes which tokens one greedy beam has."""


@dataclass(frozen=True)
class GenerationRequest:
    """How the generations of some contexts go."""

    until: tuple[str, ...]
    """Texts that end one; they are cut off, with what follows."""
    max_gen_toks: int


def generation_request(
    settings: Mapping[str, Any], *, end_of_text: str, max_gen_toks: int
) -> GenerationRequest:
    """Read the `generation_kwargs` of a task.

    Args:
        settings: As the task has them.
        end_of_text: The text of the tokenizer's last token, which ends every generation.
        max_gen_toks: Where the task names none.

    Raises:
        ValueError: something else than greedy generation is asked for.
    """
    try:
        wanted: dict[str, Any] = dict(normalize_gen_kwargs(dict(settings), max_gen_toks))
        until = handle_stop_sequences(wanted.pop("until", None), eos=end_of_text)
    except (TypeError, ValueError, OverflowError) as error:  # of int and float
        raise SentenceError(
            f"generation_kwargs are {dict(settings)!r}, which cannot be read: {one_line(error)}"
        ) from error
    length = wanted.pop("max_gen_toks")
    if length < 1:
        raise ValueError(f"max_gen_toks is {length}, needed at least 1")
    if wanted.get("do_sample"):
        raise ValueError(
            f"generation_kwargs ask for sampling (do_sample={settings.get('do_sample')}, "
            f"temperature={settings.get('temperature')}), needed greedy generation: "
            "do_sample=False, temperature=0"
        )
    _require_plain("generation_kwargs", wanted)
    known = _OF_SAMPLING | _WITHOUT_EFFECT | _NEUTRAL.keys()
    if unknown := sorted(wanted.keys() - known):
        value = wanted[unknown[0]]
        raise SentenceError(
            f"generation_kwargs sets {unknown[0]} to {value!r}, which is not supported"
        )
    return GenerationRequest(tuple(until), length)


def end_tokens(directory: Path, config: Any) -> frozenset[int]:
    """The tokens after which transformers generates nothing more.

    Args:
        directory: Of the model.
        config: The model's configuration, as transformers has it.

    Raises:
        ValueError: the model's files ask for something else than plain greedy generation.
    """
    from transformers import GenerationConfig

    if (directory / "generation_config.json").is_file():
        generation: Any = GenerationConfig.from_pretrained(directory, **LOCAL)
    else:
        generation = GenerationConfig.from_model_config(config)
    _require_plain(f"the generation_config of {directory}", generation.to_dict())
    ends = generation.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset([ends] if isinstance(ends, int) else ends)


def is_stopped(tokenizer: Any, generated: Sequence[int], until: Sequence[str]) -> bool:
    """Whether one of the texts that end a generation stands at its end.

    As in the harness, as many tokens are looked at as the text itself has, and two more: a text can
    be generated by other tokens than those that the tokenizer would choose.
    """
    return any(
        text in tokenizer.decode(generated[-(len(_tokens(tokenizer, text)) + 2) :])
        for text in until
    )


def answer_text(
    tokenizer: Any, tokens: list[int], wanted: GenerationRequest, thought: str | int | None
) -> str:
    """What a generation says, up to one of the texts that end it.

    Args:
        tokenizer: Of the model.
        tokens: That were generated.
        wanted: What was asked for.
        thought: What stands before it, up to its last occurrence, is no part of the answer.
    """
    if isinstance(thought, int) and thought in tokens:
        tokens = tokens[len(tokens) - tokens[::-1].index(thought) :]
    text: str = tokenizer.decode(tokens, skip_special_tokens=True)
    if isinstance(thought, int):
        text = text.lstrip()
    word = thought if isinstance(thought, str) else None
    answer: str = postprocess_generated_text(text, list(wanted.until), word)
    return answer


def _tokens(tokenizer: Any, text: str) -> list[int]:
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return tokens


def _require_plain(where: str, settings: Mapping[str, Any]) -> None:
    for name, neutral in _NEUTRAL.items():
        value = settings.get(name)
        if value is not None and value not in neutral:
            raise SentenceError(
                f"{where} sets {name} to {value!r}, which is not supported, needed plain greedy "
                "generation"
            )
