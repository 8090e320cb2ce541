"""Plan files: reading them with errors that a person can act on, and writing them."""

import sys
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError

from schedcc.errors import PlanFileError
from schedcc.io.bounded import read_bounded, shown
from schedcc.io.exchange import READERS
from schedcc.io.plain_text import visible
from schedcc.io.strict_json import RepeatedKeyError, parse
from schemas import Instruction, PipelinePlan, StagePlan
from schemas.base import nearest

_FORMATS: dict[object, type[PipelinePlan] | type[StagePlan]] = {
    "schedcc.plan/2": PipelinePlan,
    "schedcc.stage-plan/2": StagePlan,
    "schedcc.plan/1": PipelinePlan,
    "schedcc.stage-plan/1": StagePlan,
}
_OPS: dict[str, type[BaseModel]] = {i.__name__: i for i in get_args(Instruction)}
_TAGS = ("(number)", "(list)")
_SHOWN = 60
"""Characters of a value in a message, at most."""
_NEEDS = {"tuple_type": "a list", "model_type": "an object", "model_attributes_type": "an object"}
"""What pydantic calls by names of Python, in words of JSON."""


def read_plan(path: Path) -> PipelinePlan | StagePlan:
    """Read a plan file of either format, or a CSV file of `torch.distributed.pipelining`.

    Args:
        path: The file; `-`: standard input, which holds JSON.

    Raises:
        PlanFileError: the file cannot be read, is larger than `schedcc.io.bounded.MOST_BYTES`, or
            is no plan; the message is one line.
    """
    data = load_plan(path)
    return validated(data, path) if isinstance(data, dict) else data


def load_plan(path: Path) -> dict[str, Any] | PipelinePlan:
    """What a file holds: a JSON object with a known `format`, or another program's plan.

    Raises:
        PlanFileError: as `read_plan`.
    """
    if reader := READERS.get(path.suffix.lower()):
        return reader(path)
    content = read_bounded(path)
    try:
        data = parse(content)
    except RepeatedKeyError as error:
        place = "".join(map(_place, (*error.place, error.key))).lstrip(".")
        raise PlanFileError(
            f"{shown(path)}: not a plan: {place} is there twice, needed once"
        ) from error
    except ValueError as error:
        raise PlanFileError(f"{shown(path)}: not JSON: {error}") from error
    found = data.get("format") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(found, str) or found not in _FORMATS:
        formats = " or ".join(map(repr, _FORMATS))
        what = "a JSON object" if not isinstance(data, dict) else f"a 'format' of {formats}"
        value = _shorten(found if isinstance(data, dict) else data)
        raise PlanFileError(f"{shown(path)}: not a plan: found {value}, needed {what}")
    return data


def validated(data: dict[str, Any], path: Path) -> PipelinePlan | StagePlan:
    """The plan that a JSON object with a known `format` is.

    Raises:
        PlanFileError: it is none; the message begins with the name of the file at `path`.
    """
    try:
        return TypeAdapter(_FORMATS[data["format"]]).validate_python(data)
    except ValidationError as error:
        raise PlanFileError(f"{shown(path)}: not a plan: {explain(error)}") from error


def write_text(text: str, path: Path | None) -> None:
    """Write the text of a file, or print it if there is no path.

    Raises:
        ValueError: the file cannot be written.
    """
    if path is None:
        sys.stdout.write(text)
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{visible(path)}: cannot be written: {error.strerror}") from error


def explain(error: ValidationError) -> str:
    """The first complaint of a validation as one sentence with place, value and need."""
    first = error.errors(include_url=False)[0]
    place = "".join(map(_place, first["loc"])).lstrip(".") or "the document"
    context = first.get("ctx", {})
    match first["type"]:
        case "missing":
            return f"{place} is missing"
        case "first_format":
            return first["msg"]
        case "extra_forbidden":
            *_, op, key = ("", *first["loc"])
            if op not in _OPS:
                return f"{place} is not a key that belongs there"
            near = nearest(str(key), _OPS[str(op)].model_fields)
            meant = f", did you mean {near!r}?" if near else ""
            return f"{place} is not a key that this instruction has{meant}"
        case "unknown_key":
            key = "".join(map(_place, (*first["loc"], context["key"]))).lstrip(".")
            return f"{key} {context['what']}"
        case "union_tag_invalid":
            found, needed = _shorten(context["tag"]), context["expected_tags"]
            return f"{place}.op is {found}, needed one of {needed}"
        case "union_tag_not_found":
            return f"{place} is {_shorten(first['input'])}, needed an instruction with its 'op'"
        case "greater_than_equal":
            return f"{place} is {_shorten(first['input'])}, needed at least {context['ge']}"
        case _:
            need = _NEEDS.get(first["type"]) or first["msg"].removeprefix("Input should be ")
            more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
            return f"{place} is {_shorten(first['input'])}, needed {need}{more}"


def _place(part: int | str) -> str:
    if isinstance(part, int):
        return f"[{part}]"
    if part in _OPS or part in _TAGS:  # no key, but the member of a union that pydantic has chosen
        return ""
    plain = part.isidentifier() and len(part) <= _SHOWN
    return f".{part}" if plain else f"[{_shorten(part)}]"


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
