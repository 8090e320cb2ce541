"""What is asked of a language model, and what it answers: a context, its continuation, a score."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any


def token_ids(what: str, tokens: Any) -> tuple[int, ...]:
    """Token ids as integers.

    Args:
        what: What messages call them.
        tokens: A sequence, an array or a tensor of one dimension.

    Raises:
        ValueError: there are none, or some are negative or no integers.
    """
    values = tokens.tolist() if hasattr(tokens, "tolist") else tokens
    try:
        ids = tuple(map(index, values))
    except TypeError as error:
        raise ValueError(f"{what} holds {_first_no_integer(values)}, needed token ids") from error
    if not ids:
        raise ValueError(f"{what} is empty, needed at least one token")
    if min(ids) < 0:
        raise ValueError(f"{what} holds the token {min(ids)}, needed token ids from 0 on")
    return ids


def _first_no_integer(values: Any) -> str:
    """What a message shows of something that is no sequence of integers."""
    some = [value for value in values if not isinstance(value, int)] if _is_some(values) else []
    return repr(some[0] if some else values)[:60]


def _is_some(values: Any) -> bool:
    return isinstance(values, Iterable) and not isinstance(values, (str, bytes))


@dataclass(frozen=True)
class TokenPair:
    """A continuation to be scored after a context, both as token ids."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def __init__(self, context: Sequence[int], continuation: Sequence[int]) -> None:
        """Ask for the log-probability of `continuation` after `context`.

        Raises:
            ValueError: one of them is empty (a model predicts a token from those before it), or
                holds something else than token ids.
        """
        object.__setattr__(self, "context", token_ids("the context", context))
        object.__setattr__(self, "continuation", token_ids("the continuation", continuation))

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
