"""The keys of a file format, from its JSON Schema in `schemas/json`."""

import json
from typing import Any

from docs_extension.markdown_table import table
from schemas.json_schemas import DIRECTORY

Schema = dict[str, Any]


def json_schema(named: str) -> str:
    """A table of the keys of each object that is named.

    Args:
        named: The name of a format (`plan`), and then those of definitions in its schema.
    """
    name, *definitions = named.split()
    schema: Schema = json.loads((DIRECTORY / f"{name}.schema.json").read_text(encoding="utf-8"))
    parts = [_object(schema)] if "properties" in schema else []
    for definition in definitions:
        found = schema["$defs"][definition]
        parts += [f"*{definition}.* {_first(found)}", _object(found)]
    return "\n\n".join([f"JSON Schema: `schemas/json/{name}.schema.json`.", *parts])


def _first(schema: Schema) -> str:
    return str(schema.get("description", "")).partition("\n\n")[0]


def _object(schema: Schema) -> str:
    required = schema.get("required", [])
    rows = []
    for key, value in schema["properties"].items():
        default = value.get("default")
        absent = (
            "needed" if key in required else "" if default is None else f"`{json.dumps(default)}`"
        )
        if "const" in value:
            absent = "needed" if key in required else ""
        rows.append([f"`{key}`", _type(value), absent, str(value.get("description", ""))])
    described = any(row[3] for row in rows)
    width = 4 if described else 3
    return table(["key", "value", "if absent", ""][:width], [row[:width] for row in rows])


def _type(schema: Schema) -> str:
    """A JSON Schema in a few words."""
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return " or ".join(dict.fromkeys(_type(choice) for choice in schema[word]))
    if schema.get("type") == "array":
        items = schema.get("items") or {}
        return f"list of {_type(items)}" if items else "list"
    return str(schema.get("type", "any"))
