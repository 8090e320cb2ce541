"""JSON Schemas that accept what the readers of plans accept: today's format, and the first."""

from typing import Any

from pydantic import BaseModel

STRICT = "http://json-schema.org/draft-04/schema#"
"""The dialect of files that are read: its integers are written without a fraction, as ours are."""

_TOLD_APART_BY = ("format", "op")
"""Keys with a default in Python, which a document has to have: the reader looks at them first."""
_IMPLIED = {"ranks": ["placement"], "placement": ["ranks"]}
"""Keys of a plan that are left out together, where stage `s` is on rank `s`."""
_REFERENCE = "#/$defs/"


def plan_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The schema of the documents that a model of plans is read from."""
    today = _strict(model.model_json_schema(mode="validation"))
    parts = today.pop("$defs")
    today["required"] = [key for key in today["required"] if key not in _IMPLIED]
    today["dependencies"] = _IMPLIED
    name = today["title"]
    parts[name] = today
    changed = {part for part, schema in parts.items() if _changes(schema)}
    first = {_first(part): _of_first_format(parts[part], changed) for part in sorted(changed)}
    return {
        "$schema": STRICT,
        "title": name,
        "description": today["description"],
        "anyOf": [{"$ref": _REFERENCE + name}, {"$ref": _REFERENCE + _first(name)}],
        "$defs": {**parts, **first},
    }


def _strict(schema: Any) -> Any:
    """A schema in words of the strict dialect, with the keys that tell documents apart."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _strict(part) for key, part in schema.items()}
    if isinstance(found.get("const"), str):
        found["enum"] = [found.pop("const")]
    properties = found.get("properties")
    if isinstance(properties, dict):
        told = [key for key in _TOLD_APART_BY if key in properties]
        found["required"] = [*told, *(k for k in found.get("required", []) if k not in told)]
    if "patternProperties" in found:  # true is no schema in this dialect
        found["patternProperties"] = {key: {} for key in found["patternProperties"]}
    return found


def _changes(schema: dict[str, Any]) -> bool:
    """Whether a part of today's format is another one in the first."""
    return not {"format", "rank", "stage"}.isdisjoint(schema["properties"])


def _first(name: str) -> str:
    return f"{name}OfFirstFormat"


def _of_first_format(schema: dict[str, Any], changed: set[str]) -> dict[str, Any]:
    """A part of a plan without what came later (see `schemas.first_format`)."""
    found: dict[str, Any] = _pointing(schema, changed)
    later = {"ranks", "placement", "stage"}
    properties = {k: v for k, v in found["properties"].items() if k not in later}
    required = [key for key in found["required"] if key not in later]
    if "rank" in properties:
        properties["stage_id"] = {**properties.pop("rank"), "title": "Stage Id"}
        required[required.index("rank")] = "stage_id"
    if "format" in properties:
        (today,) = properties["format"]["enum"]
        first = today.removesuffix("/2") + "/1"
        properties["format"] = {"enum": [first], "title": "Format", "type": "string"}
    found.pop("dependencies", None)
    return {
        **found,
        "properties": properties,
        "required": required,
        "title": _first(found["title"]),
    }


def _pointing(schema: Any, changed: set[str]) -> Any:
    """A schema whose references to what has changed point to its form in the first format."""
    if isinstance(schema, dict):
        return {key: _pointing(part, changed) for key, part in schema.items()}
    if isinstance(schema, list):
        return [_pointing(part, changed) for part in schema]
    if isinstance(schema, str) and schema.removeprefix(_REFERENCE) in changed:
        return _first(schema) if schema.startswith(_REFERENCE) else schema
    return schema
