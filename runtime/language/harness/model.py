"""The model class of the harness: its requests, with the harness's own rules, over a pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, TemplateLM
from lm_eval.models.utils import postprocess_generated_text, resolve_max_length
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from runtime.language.harness.generation import (
    GenerationRequest,
    end_tokens,
    generation_request,
    is_stopped,
)
from runtime.language.harness.processes import require_device, started
from runtime.language.harness.tokens import load_tokenizer, scored_pair, special_tokens
from runtime.language.models import locate_model
from runtime.language.scoring import ScorerOptions
from runtime.language.scoring.greedy import generate_greedily
from runtime.language.scoring.options import MAX_TOKENS

AT_ONCE = 4096
"""Requests between two times that answers go to the harness's cache."""

Encoded = tuple[tuple[str, str] | None, list[int], list[int]]
"""A request's texts, its context and its continuation."""


class SchedccLM(TemplateLM):
    """A causal language model over the stages of a pipeline, for lm-evaluation-harness."""

    def __init__(
        self,
        pretrained: str,
        *,
        stages: int | None = None,
        replicas: int | None = None,
        tokenizer: str | None = None,
        dtype: str = "auto",
        softmax_dtype: str | None = None,
        max_length: int | None = None,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        max_tokens: int = MAX_TOKENS,
        share_contexts: bool = False,
        partition: str = "balanced",
        threads: int | None = None,
        timeout: float | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        enable_thinking: bool | None = None,
        think_end_token: str | int | None = None,
        chat_template_args: dict[str, Any] | None = None,
        device: str | None = None,
    ) -> None:
        """Load the model; names that `hf` of the harness has, too, mean what they mean there.

        Args:
            pretrained: What `pipeval --model` takes: a model directory, a GGUF file, `smollm2`.
            stages: S; default: one, or under a launcher all its processes.
            replicas: Of the pipeline, under a launcher; default: its processes / `stages`.
            tokenizer: The directory of another tokenizer.
            dtype: Of the weights; `"auto"`: as the model's files have them.
            softmax_dtype: Of log-probabilities; default: that of the logits.
            max_length: Tokens that the model is given at a time; default: as `hf` finds it.
            batch_size: Sequences of a micro-batch, at most; `"auto"`: as many as fit.
            max_batch_size: The same, where `batch_size` is `"auto"`.
            max_tokens: Of a micro-batch, padding included.
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
            think_end_token: What a generation has up to it is no part of the answer.
            chat_template_args: Handed to the chat template.
            device: Not chosen here: each process has a GPU where there are any, else the CPU.

        Raises:
            ModelError, PartitionError, WorkerError: the model cannot be loaded.
            AgreementError: a launcher has started another number of processes than wanted.
            ValueError: an argument is none that there is.
        """
        super().__init__()
        require_device(device)
        if enable_thinking and think_end_token is None:
            raise ValueError("enable_thinking is True, needed a think_end_token as well")
        self.batch_size = batch_size
        rows = max_batch_size if str(batch_size).startswith("auto") else int(batch_size)
        limits = {} if timeout is None else {"timeout": timeout}
        options = ScorerOptions(
            dtype=dtype,
            softmax_dtype=softmax_dtype,
            max_tokens=max_tokens,
            max_rows=rows,
            share_contexts=share_contexts,
            partition=partition,
            threads=threads,
            **limits,
        )
        files = locate_model(str(pretrained))
        self._directory = files.directory
        self._processes = started(files, options, stages=stages, replicas=replicas)
        self._scorer = self._processes.scorer
        self.config = self._scorer.config
        self._device = self._processes.device
        self._rank, self._world_size = self._processes.replica, self._processes.replicas
        named = pretrained if Path(pretrained).is_dir() else self._directory
        self.tokenizer = load_tokenizer(
            tokenizer or named, self.config, add_bos_token=add_bos_token
        )
        self.vocab_size = self.tokenizer.vocab_size
        self.add_bos_token, self.custom_prefix_token_id = add_bos_token, prefix_token_id
        self._max_length = max_length
        self.enable_thinking, self.think_end_token = enable_thinking, think_end_token
        self.chat_template_args = dict(chat_template_args or {})
        if enable_thinking is not None:
            self.chat_template_args["enable_thinking"] = enable_thinking

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
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """The tokens of a text; one that begins with the prefix token's text gets no other."""
        options = special_tokens(
            string,
            self.tokenizer.decode(self.prefix_token_id),
            add_special_tokens=add_special_tokens,
            add_bos_token=self.add_bos_token,
        )
        return self.tokenizer.encode(string, **options)  # type: ignore[no-any-return]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """The log-probability of each continuation, and whether it is the greedy one."""
        if self.enable_thinking:
            raise ValueError("enable_thinking is True, needed tasks that generate")
        answers: list[tuple[float, bool]] = super().loglikelihood(
            requests, disable_tqdm=disable_tqdm
        )
        return answers

    def _loglikelihood_tokens(
        self, requests: Sequence[Encoded], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        length = self.max_length
        pairs = [scored_pair(context, answer, length) for _, context, answer in requests]
        # The longest first, and beside each other what has the same inputs.
        order = sorted(range(len(pairs)), key=lambda n: (-len(pairs[n].inputs), pairs[n].inputs))
        answers: dict[int, tuple[float, bool]] = {}
        with self._progress(len(pairs), "loglikelihood", disable_tqdm) as bar:
            for some in _parts(order):
                scores = self._scorer.score([pairs[n] for n in some], progress=bar.update)
                for n, score in zip(some, scores, strict=True):
                    answers[n] = (score.log_prob, score.is_greedy)
                    if requests[n][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[n][0], answers[n])
        return [answers[n] for n in range(len(pairs))]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-probability of each text as a whole, in windows with one token of context."""
        totals = [0.0] * len(requests)
        windows: list[tuple[int, Encoded]] = []
        for number, (text,) in enumerate(request.args for request in requests):
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append((number, (None, *make_disjoint_window(window))))
        answers = self._loglikelihood_tokens([window for _, window in windows], disable_tqdm)
        for (number, _), (log_prob, _) in zip(windows, answers, strict=True):
            totals[number] += log_prob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model says after each context, greedily, up to one of the task's texts."""
        ends = end_tokens(self._directory, self.config)
        end_of_text = self.tokenizer.decode(self.eot_token_id, skip_special_tokens=False)
        groups: dict[GenerationRequest, list[int]] = {}
        for number, (_, settings) in enumerate(request.args for request in requests):
            wanted = generation_request(
                settings, end_of_text=end_of_text, max_gen_toks=self.max_gen_toks
            )
            groups.setdefault(wanted, []).append(number)
        texts: dict[int, str] = {}
        with self._progress(len(requests), "generate_until", disable_tqdm) as bar:
            for wanted, numbers in groups.items():
                contexts = [self._context(requests[n].args[0], wanted) for n in numbers]
                generated = generate_greedily(
                    self._scorer,
                    contexts,
                    max_new_tokens=wanted.max_gen_toks,
                    is_done=partial(self._is_done, ends, wanted.until),
                    progress=bar.update,
                )
                for n, tokens in zip(numbers, generated, strict=True):
                    texts[n] = self._text(tokens, wanted.until)
                    self.cache_hook.add_partial("generate_until", requests[n].args, texts[n])
        return [texts[n] for n in range(len(requests))]

    def _context(self, text: str, wanted: GenerationRequest) -> list[int]:
        room = self.max_length - wanted.max_gen_toks
        if room < 1:
            raise ValueError(
                f"max_gen_toks is {wanted.max_gen_toks}, needed less than the model's max_length, "
                f"{self.max_length}"
            )
        options = special_tokens(
            text,
            self.tokenizer.bos_token,
            add_special_tokens=None,
            add_bos_token=self.add_bos_token,
        )
        tokens: list[int] = self.tokenizer(text, **options)["input_ids"]
        return tokens[-room:]

    def _is_done(self, ends: Set[int], until: Sequence[str], new: Sequence[int]) -> bool:
        return new[-1] in ends or is_stopped(self.tokenizer, new, until)

    def _text(self, tokens: list[int], until: Sequence[str]) -> str:
        thought = self.think_end_token
        if isinstance(thought, int) and thought in tokens:
            tokens = tokens[len(tokens) - tokens[::-1].index(thought) :]
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        if isinstance(thought, int):
            text = text.lstrip()
        word = thought if isinstance(thought, str) else None
        cut: str = postprocess_generated_text(text, stop=list(until), think_end_token=word)
        return cut

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation; a template that knows no system message gets none."""

        def rendered(messages: list[dict[str, str]]) -> str:
            text: str = self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                **self.chat_template_args,
            )
            return text

        try:
            return rendered(chat_history)
        except jinja2.exceptions.TemplateError:
            return rendered([message for message in chat_history if message["role"] != "system"])

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes down about the model beside the arguments."""
        return {
            "model_dtype": str(self._scorer.options.torch_dtype(self._scorer.files)),
            "stages": self._processes.stages,
            "replicas": self._processes.replicas,
        }

    def _progress(self, total: int, kind: str, disabled: bool) -> Any:
        hidden = disabled or self.rank != 0 or not self._processes.shows
        return tqdm(total=total, disable=hidden, desc=f"Running {kind} requests")


def _parts(order: Sequence[int]) -> Iterator[Sequence[int]]:
    for first in range(0, len(order), AT_ONCE):
        yield order[first : first + AT_ONCE]
