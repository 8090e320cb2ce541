"""What every schema shares: frozen models, and integers that are integers."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator
from pydantic_core import PydanticCustomError

Id = Annotated[int, Strict()]
"""A number that names something (a stage, a buffer, a micro-batch). `true`, `1.0` and `"1"` are
refused. Its range is not part of its type: an id out of range is a finding of the checker."""

Count = Annotated[int, Strict(), Field(ge=1)]
"""A number of things, 1 or more."""

Size = Annotated[int, Strict(), Field(ge=0)]
"""A number of things, of which there may be none."""


class Frozen(BaseModel):
    """A value: immutable, hashable and comparable, with no keys but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Verdict(Frozen):
    """A value that computes an `ok`, which its JSON form carries for its readers."""

    @model_validator(mode="before")
    @classmethod
    def _derives_ok(cls, data: object) -> object:
        return {k: v for k, v in data.items() if k != "ok"} if isinstance(data, dict) else data


class Annotatable(Frozen):
    """A value that may carry further keys, which a round trip through JSON preserves."""

    model_config = ConfigDict(extra="allow")


EXTENSION = "x-"
"""What a key begins with that is not ours: it is kept, and means nothing to us."""


class Extensible(Frozen):
    """A value with its own keys and extensions (`x-...`), which a round trip preserves.

    Any other key is refused: it may be one of ours that was misspelled, and would change what runs.
    """

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "additionalProperties": False,
            "patternProperties": {f"^{EXTENSION}": True},
        },
    )

    noun: ClassVar[str]
    """What it is, for messages."""

    @model_validator(mode="before")
    @classmethod
    def _knows_its_keys(cls, data: object) -> object:
        known = [*cls.model_fields]
        for key in map(str, data if isinstance(data, dict) else ()):
            if key not in known and not key.startswith(EXTENSION):
                raise PydanticCustomError(
                    "unknown_key",
                    "{shown} {what}",
                    {"key": key, "shown": repr(key), "what": unknown_key(key, cls.noun, known)},
                )
        return data


def nearest(key: str, known: Iterable[str]) -> str | None:
    """The known key that was probably meant, if any."""
    return next(
        iter(get_close_matches(key.lower().replace("-", "_"), [*known], 1, cutoff=0.7)), None
    )


def unknown_key(key: str, noun: str, known: list[str]) -> str:
    """What is wrong with a key, to be said after the key itself.

    >>> unknown_key("Stages", "a plan", ["stages", "programs"])
    "is not a key of a plan, did you mean 'stages'? (extensions begin with 'x-')"
    >>> unknown_key("colour", "a plan", ["stages", "programs"])
    "is not a key of a plan, which has 'stages', 'programs' (extensions begin with 'x-')"
    """
    near = nearest(key, known)
    which = f"did you mean {near!r}?" if near else f"which has {', '.join(map(repr, known))}"
    return f"is not a key of {noun}, {which} (extensions begin with {EXTENSION!r})"
