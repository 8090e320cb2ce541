"""The model class of the harness: its requests, with the harness's own rules, over a pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from functools import partial
from typing import Any

from lm_eval.api.instance import Instance
from tqdm import tqdm

from runtime.language.harness.base import PipelineLM
from runtime.language.harness.generation import (
    GenerationRequest,
    answer_text,
    end_tokens,
    generation_request,
    is_stopped,
)
from runtime.language.harness.tokens import document_windows, scored_pair, special_tokens
from runtime.language.scoring import TokenPair
from runtime.language.scoring.greedy import generate_greedily
from schedcc.io.plain_text import visible

AT_ONCE = 4096
"""Requests between two times that answers go to the harness's cache."""

SHOWN = 60
"""Characters of a request's text in an error."""

Encoded = tuple[tuple[str, str] | None, list[int], list[int]]
"""A request's texts, its context and its continuation."""


class SchedccLM(PipelineLM):
    """A causal language model over the stages of a pipeline, for lm-evaluation-harness."""

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """The log-probability of each continuation, and whether it is the greedy one."""
        if self.enable_thinking:
            raise ValueError("enable_thinking is True, needed tasks that generate")
        for number, (context, answer) in enumerate(request.args for request in requests):
            if not context and not self.tok_encode(answer, add_special_tokens=False):
                raise ValueError(f"{_named(number, answer)}: it is empty, needed a continuation")
        answers: list[tuple[float, bool]] = super().loglikelihood(
            requests, disable_tqdm=disable_tqdm
        )
        return answers

    def _loglikelihood_tokens(
        self, requests: Sequence[Encoded], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = self._pairs(requests)
        order = _order(pairs)
        answers: dict[int, tuple[float, bool]] = {}
        with self._progress(len(pairs), "loglikelihood", disable_tqdm) as bar:
            for some in _parts(order):
                scores = self._scorer.score([pairs[n] for n in some], progress=bar.update)
                for n, score in zip(some, scores, strict=True):
                    answers[n] = (score.log_prob, score.is_greedy)
                    if requests[n][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[n][0], answers[n])
        return [answers[n] for n in range(len(pairs))]

    def _pairs(self, requests: Sequence[Encoded]) -> list[TokenPair]:
        """What is scored of each request.

        Raises:
            ValueError: a continuation is empty, or something is too long; it says which request.
        """
        length, pairs = self.max_length, []
        for number, (texts, context, answer) in enumerate(requests):
            try:
                pairs.append(scored_pair(context, answer, length))
                self._scorer.files.limits.check(len(pairs[-1].inputs))
            except ValueError as error:
                raise ValueError(f"{_named(number, *(texts or ()))}: {error}") from error
        return pairs

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-probability of each text as a whole, in windows with one token of context."""
        totals = [0.0] * len(requests)
        windows: list[tuple[int, Encoded]] = []
        for number, (text,) in enumerate(request.args for request in requests):
            tokens, length = self.tok_encode(text), self.max_length
            for window in document_windows(tokens, self.prefix_token_id, length):
                windows.append((number, (None, *window)))
        answers = self._loglikelihood_tokens([window for _, window in windows], disable_tqdm)
        for (number, _), (log_prob, _) in zip(windows, answers, strict=True):
            totals[number] += log_prob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model says after each context, greedily, up to one of the task's texts."""
        ends = end_tokens(self._directory, self.config)
        end_of_text = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        groups: dict[GenerationRequest, list[int]] = {}
        for number, (_, settings) in enumerate(request.args for request in requests):
            wanted = generation_request(
                settings, end_of_text=end_of_text, max_gen_toks=self.max_gen_toks
            )
            groups.setdefault(wanted, []).append(number)
        texts: dict[int, str] = {}
        with self._progress(len(requests), "generate_until", disable_tqdm) as bar:
            for wanted, numbers in groups.items():
                room = self._room(wanted)
                contexts = [self._context(n, requests[n].args[0], room) for n in numbers]
                generated = generate_greedily(
                    self._scorer,
                    contexts,
                    max_new_tokens=wanted.max_gen_toks,
                    is_done=partial(self._is_done, ends, wanted.until),
                    progress=bar.update,
                )
                for n, tokens in zip(numbers, generated, strict=True):
                    texts[n] = answer_text(self.tokenizer, tokens, wanted, self.think_end_token)
                    self.cache_hook.add_partial("generate_until", requests[n].args, texts[n])
        return [texts[n] for n in range(len(requests))]

    def _is_done(self, ends: Set[int], until: Sequence[str], new: Sequence[int]) -> bool:
        return new[-1] in ends or is_stopped(self.tokenizer, new, until)

    def _room(self, wanted: GenerationRequest) -> int:
        """Tokens that a context may have.

        Raises:
            ValueError: none.
        """
        room = self.max_length - wanted.max_gen_toks
        if room < 1:
            raise ValueError(
                f"max_gen_toks is {wanted.max_gen_toks}, needed less than the model's max_length, "
                f"{self.max_length}"
            )
        return room

    def _context(self, number: int, text: str, room: int) -> list[int]:
        options = special_tokens(
            text,
            self.tokenizer.bos_token,
            add_special_tokens=None,
            add_bos_token=self.add_bos_token,
        )
        tokens: list[int] = self.tokenizer(text, **options)["input_ids"]
        if not tokens:
            raise ValueError(f"{_named(number, text)}: the context is empty, needed a token")
        return tokens[-room:]

    def _progress(self, total: int, kind: str, disabled: bool) -> Any:
        hidden = disabled or self.rank != 0 or not self._processes.shows
        return tqdm(total=total, disable=hidden, desc=f"Running {kind} requests")


def _named(number: int, *texts: str) -> str:
    """A request, so that its user finds it."""
    return f'request {number} ("{visible("".join(texts)[:SHOWN])}")'


def _order(pairs: Sequence[TokenPair]) -> list[int]:
    """The numbers of pairs: the longest first, beside each other those with the same context.

    Each has the place of the longest one with its context, or what is computed once would be
    computed in several parts. A short context says little about what follows, and counts for none.
    """
    groups = [p.context if 2 * len(p.context) >= len(p.inputs) else p.inputs for p in pairs]
    longest: dict[tuple[int, ...], int] = {}
    for pair, group in zip(pairs, groups, strict=True):
        longest[group] = max(len(pair.inputs), longest.get(group, 0))
    return sorted(
        range(len(pairs)),
        key=lambda n: (-longest[groups[n]], groups[n], -len(pairs[n].inputs), pairs[n].inputs),
    )


def _parts(order: Sequence[int]) -> Iterator[Sequence[int]]:
    for first in range(0, len(order), AT_ONCE):
        yield order[first : first + AT_ONCE]
