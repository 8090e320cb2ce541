"""The report of a failure: what every rank of a run is told, and raises."""

import textwrap
import traceback
from collections.abc import Sequence
from typing import Literal

from runtime.failure.error_text import encodable, text_of
from schemas.base import Frozen

TRACEBACK_LIMIT = 20_000
"""Characters of a traceback that travel; of a longer one the end does."""


Kind = Literal["error", "lost", "stalled", "disagreement"]
"""A disagreement: the ranks wait to begin different things."""


class Failure(Frozen):
    """Why a run ended, in a form that fits on a store."""

    kind: Kind
    reporter: int
    """The rank that told the others."""
    name: str
    """What the reporter is called, as `"stage 1"`."""
    at: str
    """What that rank was doing: step and instruction, or a phase of the evaluation."""
    error: str = ""
    """Class of the exception, for the kind `error`."""
    reason: str
    """The exception's text, or one sentence."""
    traceback: str = ""
    gone: tuple[int, ...] = ()
    """Ranks that cannot be expected to hear of it."""

    @classmethod
    def of(cls, error: BaseException, *, reporter: int, name: str, at: str) -> "Failure":
        """The report of an exception that the rank `name` raised while it was `at` something."""
        trace = encodable("".join(traceback.format_exception(error))[-TRACEBACK_LIMIT:])
        return cls(
            kind="error",
            reporter=reporter,
            name=name,
            at=at,
            error=encodable(type(error).__name__),
            reason=text_of(error),
            traceback=trace[-TRACEBACK_LIMIT:],
        )

    @property
    def headline(self) -> str:
        """The failure in one sentence."""
        if self.kind == "error":
            return f"{self.name} failed at {self.at}: {self.error}: {self.reason}"
        return self.reason

    def __str__(self) -> str:
        if not self.traceback:
            return self.headline
        trace = textwrap.indent(self.traceback.rstrip(), "  ")
        return f"{self.headline}\nTraceback of {self.name}:\n{trace}"


def names(ranks: Sequence[str]) -> str:
    """`stage 1, stage 2 and stage 5`.

    >>> names(["stage 1", "stage 2", "stage 5"])
    'stage 1, stage 2 and stage 5'
    """
    return " and ".join(filter(None, [", ".join(ranks[:-1]), ranks[-1]]))
