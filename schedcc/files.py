"""Plan files: reading them with errors that a person can act on."""

from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from schedcc.errors import PlanFileError
from schemas import PipelinePlan, StagePlan

_FORMATS: dict[object, type[PipelinePlan] | type[StagePlan]] = {
    "schedcc.plan/1": PipelinePlan,
    "schedcc.stage-plan/1": StagePlan,
}


def read_plan(path: Path) -> PipelinePlan | StagePlan:
    """Read a plan file of either format.

    Raises:
        PlanFileError: the file cannot be read or is no plan; the message is one line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PlanFileError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        data = from_json(content)
    except ValueError as error:
        raise PlanFileError(f"{path}: not JSON: {error}") from error
    found = data.get("format") if isinstance(data, dict) else None
    if not isinstance(found, str) or found not in _FORMATS:
        formats = " or ".join(map(repr, _FORMATS))
        what = "a JSON object" if not isinstance(data, dict) else f"a 'format' of {formats}"
        shown = _shorten(data) if not isinstance(data, dict) else repr(found)
        raise PlanFileError(f"{path}: not a plan: found {shown}, needed {what}")
    try:
        return TypeAdapter(_FORMATS[found]).validate_python(data)
    except ValidationError as error:
        raise PlanFileError(f"{path}: not a plan: {explain(error)}") from error


def explain(error: ValidationError) -> str:
    """The first complaint of a validation as one sentence with place, value and need."""
    first = error.errors(include_url=False)[0]
    place = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}"
        for part in first["loc"]
        if not (isinstance(part, str) and part[:1].isupper())  # the name of the union's member
    ).lstrip(".")
    context = first.get("ctx", {})
    match first["type"]:
        case "missing":
            return f"{place} is missing"
        case "extra_forbidden":
            return f"{place} is not a key that this instruction has"
        case "union_tag_invalid":
            return f"{place}.op is {context['tag']!r}, needed one of {context['expected_tags']}"
        case "union_tag_not_found":
            return f"{place} is {_shorten(first['input'])}, needed an instruction with its 'op'"
        case "greater_than_equal":
            return f"{place} is {_shorten(first['input'])}, needed at least {context['ge']}"
        case _:
            need = first["msg"].removeprefix("Input should be ")
            more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
            return f"{place} is {_shorten(first['input'])}, needed {need}{more}"


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
