"""What the harness asks of a model beside answers: its tokens, its limits, its processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import CacheHook, TemplateLM
from lm_eval.models.utils import resolve_max_length
from transformers import PreTrainedTokenizerBase

from runtime.language.harness.arguments import (
    end_of_thoughts,
    require_bools,
    require_counts,
    require_known,
    require_path,
    require_tokenizer,
    scorer_options,
    template_options,
)
from runtime.language.harness.processes import require_device, started
from runtime.language.harness.tokens import chat_text, load_tokenizer, special_tokens
from runtime.language.models import locate_model


class PipelineLM(TemplateLM):
    """A causal language model over the stages of a pipeline, before anything is asked of it."""

    def __init__(
        self,
        pretrained: str | PathLike[str] | None = None,
        *,
        stages: int | None = None,
        replicas: int | None = None,
        tokenizer: str | PathLike[str] | PreTrainedTokenizerBase | None = None,
        dtype: str | torch.dtype | None = "auto",
        softmax_dtype: str | torch.dtype | None = None,
        max_length: int | None = None,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        max_tokens: int | None = None,
        share_contexts: bool = False,
        partition: str = "balanced",
        threads: int | None = None,
        timeout: float | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        enable_thinking: bool | None = None,
        think_end_token: str | int | None = None,
        chat_template_args: Mapping[str, Any] | None = None,
        device: str | None = None,
        **other: Any,
    ) -> None:
        """Load the model; names that `hf` of the harness has, too, mean what they mean there.

        Args:
            pretrained: What `pipeval --model` takes: a model directory, a GGUF file, `smollm2`.
            stages: S; default: one, or under a launcher all its processes.
            replicas: Of the pipeline, under a launcher; default: its processes / `stages`.
            tokenizer: Another tokenizer, or the directory of one.
            dtype: Of the weights; `"auto"` or `None`: as the model's files have them.
            softmax_dtype: Of log-probabilities; default: that of the logits.
            max_length: Tokens that the model is given at a time; default: as `hf` finds it.
            batch_size: Sequences of a micro-batch, at most; `"auto"`: as many as fit.
            max_batch_size: The same, where `batch_size` is `"auto"`.
            max_tokens: Of a micro-batch, padding included; default: 2048, and fewer in a short run.
            share_contexts: Whether what several requests begin with is computed once; answers
                differ by rounding from those of `hf` then.
            partition: How layers are divided: `"balanced"`, or as of `Evaluator`.
            threads: Of each process; default: the cores divided by the stages, if this process was
                started alone.
            timeout: Seconds without progress after which a run is ended.
            add_bos_token: Whether texts begin with the token for their beginning.
            prefix_token_id: What stands before texts without a context; default: the tokenizer's
                token for the beginning of a text, or else the one for its end.
            enable_thinking: Handed to the chat template.
            think_end_token: What a generation has up to it is no part of the answer: a text, or
                a token id, also where digits are given as a text.
            chat_template_args: Handed to the chat template.
            device: Not chosen here: each process has a GPU where there are any, else the CPU.
            other: Arguments of `hf` with values that ask for nothing here.

        Raises:
            ModelError, PartitionError, WorkerError: the model cannot be loaded.
            AgreementError: a launcher has started another number of processes than wanted.
            ValueError: an argument is none that there is.
        """
        super().__init__()
        require_known(other, signature(PipelineLM).parameters.keys() - {"other"})
        pretrained = require_path("pretrained", pretrained)
        tokenizer = require_tokenizer(tokenizer)
        require_counts(stages=stages, replicas=replicas, max_length=max_length)
        require_counts(least=0, prefix_token_id=prefix_token_id)
        require_bools(add_bos_token=add_bos_token, enable_thinking=enable_thinking)
        require_device(device)
        self.batch_size, self._max_length = batch_size, max_length
        self.add_bos_token, self.custom_prefix_token_id = add_bos_token, prefix_token_id
        self.enable_thinking = enable_thinking
        self.think_end_token = end_of_thoughts(think_end_token, needed=enable_thinking)
        self.chat_template_args = template_options(chat_template_args, enable_thinking)
        options = scorer_options(
            dtype=dtype,
            softmax_dtype=softmax_dtype,
            max_tokens=max_tokens,
            batch_size=batch_size,
            max_batch_size=max_batch_size,
            share_contexts=share_contexts,
            partition=partition,
            threads=threads,
            timeout=timeout,
        )
        files = locate_model(pretrained)
        self._directory = files.directory
        self._processes = started(files, options, stages=stages, replicas=replicas)
        named = pretrained if Path(pretrained).is_dir() else files.directory
        try:
            self._loaded(tokenizer or named)
        except BaseException:  # whose traceback would keep the processes
            self.close()
            raise

    def _loaded(self, tokenizer: str | Path | PreTrainedTokenizerBase) -> None:
        self._scorer = self._processes.scorer
        self.config = self._scorer.config
        self._device = self._processes.device
        self._rank, self._world_size = self._processes.replica, self._processes.replicas
        self.tokenizer = load_tokenizer(tokenizer, self.config, add_bos_token=self.add_bos_token)
        self.vocab_size = self.tokenizer.vocab_size

    def close(self) -> None:
        """End the other processes; the harness never does, they end with this one as well."""
        self._processes.close()

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id  # type: ignore[no-any-return]

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context: the user's, else for begin, else for end."""
        if self.custom_prefix_token_id is not None:
            return self.custom_prefix_token_id
        start = self.tokenizer.bos_token_id
        return self.eot_token_id if start is None else start

    @property
    def max_length(self) -> int:
        """Tokens that the model is given at a time."""
        return self._max_length or resolve_max_length(self.config, self.tokenizer)

    @property
    def max_gen_toks(self) -> int:
        """Tokens of a generation, where a task says nothing."""
        return 256

    @property
    def tokenizer_name(self) -> str:
        """What the harness's cache of requests knows the tokenizer by."""
        return self.tokenizer.name_or_path.replace("/", "__")  # type: ignore[no-any-return]

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all replicas."""
        return self._processes.all_gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """The objects of all replicas on replica `dst`."""
        return self._processes.gather_objects(obj, dst)

    def barrier(self) -> None:
        """Wait for all replicas."""
        self._processes.barrier()

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Use the harness's cache of answers.

        Raises:
            ValueError: several processes would share one file of it, and see different answers.
        """
        processes = self._processes
        if processes.stages > 1 and processes.replicas > 1:
            raise ValueError(
                f"use_cache with {processes.replicas} replicas of {processes.stages} stages: "
                "processes of different pipelines would share a file; needed one replica, or one "
                "stage"
            )
        super().set_cache_hook(cache_hook)

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **_: Any,
    ) -> list[int]:
        """The tokens of a text; one that begins with the prefix token's text gets no other.

        Args:
            string: The text.
            add_special_tokens: Whether the tokenizer adds its own.
            left_truncate_len: How many tokens there are at most, the last ones; 0: any number.
        """
        options = special_tokens(
            string,
            self.tokenizer.decode(self.prefix_token_id),
            add_special_tokens=add_special_tokens,
            add_bos_token=self.add_bos_token,
        )
        tokens: list[int] = self.tokenizer.encode(string, **options)
        return tokens[-left_truncate_len:] if left_truncate_len else tokens

    def tok_decode(self, tokens: Iterable[int] | int, skip_special_tokens: bool = True) -> str:
        """The text of tokens, without special ones unless they are wanted."""
        return self.tokenizer.decode(  # type: ignore[no-any-return]
            tokens, skip_special_tokens=skip_special_tokens
        )

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation; a template that knows no system message gets none."""
        return chat_text(
            self.tokenizer,
            chat_history,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **self.chat_template_args,
        )

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes down about the model beside the arguments."""
        return {
            "model_dtype": str(self._scorer.options.torch_dtype(self._scorer.files)),
            "stages": self._processes.stages,
            "replicas": self._processes.replicas,
        }
