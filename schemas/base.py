"""What every schema shares: frozen models, and integers that are integers."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

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
