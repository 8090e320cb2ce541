"""What is asked of a language model, and what it answers: a context, its continuation, a score."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TokenPair:
    """A continuation to be scored after a context, both as token ids."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def __init__(self, context: Sequence[int], continuation: Sequence[int]) -> None:
        """Ask for the log-probability of `continuation` after `context`.

        Raises:
            ValueError: one of them is empty: a model predicts a token from those before it.
        """
        for name, tokens in (("context", context), ("continuation", continuation)):
            if not tokens:
                raise ValueError(f"the {name} is empty, needed at least one token")
        object.__setattr__(self, "context", tuple(context))
        object.__setattr__(self, "continuation", tuple(continuation))

    @property
    def inputs(self) -> tuple[int, ...]:
        """What the model is given: all tokens but the last, after which nothing is predicted."""
        return self.context + self.continuation[:-1]


@dataclass(frozen=True)
class Score:
    """What a model says of one pair."""

    log_prob: float
    """The sum of the log-probabilities of the continuation's tokens, in nats."""
    is_greedy: bool
    """Whether each of these tokens is the most probable one at its place."""
