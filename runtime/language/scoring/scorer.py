"""Scores of continuations, whatever processes compute them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Self

import torch

from runtime.language.models import ModelFiles, require_known_tokens
from runtime.language.scoring.batching import (
    MAX_TOKENS,
    MOST_PADDING,
    Asked,
    MicroBatch,
    Row,
    micro_batches,
    rows_of,
)
from runtime.language.scoring.options import ScorerOptions
from runtime.language.scoring.pairs import Score, TokenPair, token_ids
from runtime.language.scoring.sharing import (
    PROBE,
    TOLERANCE,
    has_length_dependent_rope,
    merge_prefixes,
    require_full_attention,
    shared,
)
from runtime.language.scoring.stage import Kind

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Progress = Callable[[int], None]
"""Told how many more pairs or sequences have gone through the first stage."""


class Scorer(ABC):
    """Scores continuations with a causal language model over the stages of a pipeline."""

    def __init__(self, files: ModelFiles, options: ScorerOptions) -> None:
        """Score with the model of `files`."""
        self.files, self.options = files, options
        self._shares = False
        """Whether it is known that contexts can be shared."""

    @property
    @abstractmethod
    def config(self) -> PreTrainedConfig:
        """The model's configuration, as transformers has it."""

    @abstractmethod
    def close(self) -> None:
        """Give back processes, connections and memory; another time does nothing."""

    @abstractmethod
    def _run(
        self, batches: Sequence[MicroBatch], kind: Kind, progress: Progress | None
    ) -> Sequence[torch.Tensor]:
        """What the last stage makes of each micro-batch."""

    def score(self, pairs: Iterable[TokenPair], *, progress: Progress | None = None) -> list[Score]:
        """The log-probability of each pair's continuation, in the order of the pairs.

        Pairs are sorted by length for the computation. Inputs that several have in common, or
        with which others begin, are computed once, and with `share_contexts` what they begin with.

        Args:
            pairs: Any number; none longer than what the model accepts.
            progress: Told how many more pairs have gone through the first stage. An exception of it
                is a failure of that stage, which ends the other processes of a `LocalScorer`.

        Raises:
            ModelError: a pair is too long for the model, or has a token that it does not know.
            ValueError: contexts are to be shared, and the model gives other scores then.
            RemoteError: a stage failed, ended without a word, or did not get on in time.
        """
        pairs = [*pairs]
        for number, pair in enumerate(pairs):
            require_known_tokens(self.files, f"pair {number}", pair.context + pair.continuation)
        rows = rows_of(pairs)
        if not has_length_dependent_rope(self.config):
            rows = merge_prefixes(rows)
        if self.options.share_contexts:
            self._require_sharing()
            rows = self._shared(rows)
        return self._scores(rows, len(pairs), progress)

    def _scores(self, rows: Sequence[Row], pairs: int, progress: Progress | None) -> list[Score]:
        batches = self._divided(rows)
        log_probs: list[list[float]] = [[] for _ in range(pairs)]
        greedy = [True] * pairs
        answers = self._run(batches, "score", progress) if batches else ()
        for batch, answer in zip(batches, answers, strict=True):
            for pair, (log_prob, is_greedy) in zip(batch.answers(), answer.tolist(), strict=True):
                log_probs[pair].append(log_prob)
                greedy[pair] = greedy[pair] and bool(is_greedy)
        return [Score(sum(some), best) for some, best in zip(log_probs, greedy, strict=True)]

    def next_tokens(
        self, sequences: Iterable[Sequence[int]], *, progress: Progress | None = None
    ) -> list[int]:
        """The most probable token after each sequence, in the order of the sequences.

        A sequence that is there several times is computed once.

        Raises:
            ValueError: a sequence is empty, or holds something else than token ids.
            ModelError, RemoteError: as of `score`.
        """
        rows: dict[tuple[int, ...], Row] = {}
        number = -1
        for number, sequence in enumerate(sequences):
            some = token_ids(f"sequence {number}", sequence)
            require_known_tokens(self.files, f"sequence {number}", some)
            rows.setdefault(some, Row(some)).asked.append(Asked(number, (), ()))
        batches = self._divided(list(rows.values()))
        tokens = [0] * (number + 1)
        answers = self._run(batches, "next_tokens", progress) if batches else ()
        for batch, answer in zip(batches, answers, strict=True):
            for row, token in zip(batch.rows, answer.tolist(), strict=True):
                for asked in row.asked:
                    tokens[asked.pair] = token
        return tokens

    def _shared(self, rows: Sequence[Row]) -> list[Row]:
        for row in rows:
            self.files.limits.check(len(row.tokens))
        max_tokens = self.options.max_tokens or MAX_TOKENS
        return shared(rows, max_tokens=max_tokens, limit=self.files.limits.max_positions)

    def _require_sharing(self) -> None:
        """Refuse to share contexts where the model gives other scores then.

        Raises:
            ValueError: it does, or may.
        """
        if self._shares:
            return
        require_full_attention(self.files.name, self.config)
        apart = self._scores(rows_of(PROBE), len(PROBE), None)
        together = self._scores(self._shared(rows_of(PROBE)), len(PROBE), None)
        differences = [abs(a.log_prob - b.log_prob) for a, b in zip(apart, together, strict=True)]
        if not max(differences) < TOLERANCE:
            raise ValueError(
                f"share_contexts with {self.files.name}: scores differ by {max(differences):.3g} "
                "nats when contexts are shared, needed a model that heeds a mask of attention"
            )
        self._shares = True

    def _divided(self, rows: Sequence[Row]) -> list[MicroBatch]:
        for row in rows:
            self.files.limits.check(len(row.tokens))
        options = self.options
        return micro_batches(
            rows,
            max_tokens=options.max_tokens,
            max_rows=options.max_rows,
            most_padding=0.0 if has_length_dependent_rope(self.config) else MOST_PADDING,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def counted(batches: Sequence[MicroBatch], progress: Progress | None) -> Callable[[], None] | None:
    """Tells `progress` of the pairs of the next micro-batch, each time that it is called."""
    if progress is None:
        return None
    sizes = iter([batch.pairs for batch in batches])
    return lambda: progress(next(sizes))
