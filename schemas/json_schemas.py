"""JSON Schemas of the file formats, generated from the models.

`python -m schemas.json_schemas` writes them to `schemas/json/`; a test keeps them current.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from schemas.checkpoints import CheckpointInspection, CheckpointManifest
from schemas.conformance import Conformance
from schemas.costs import Costs
from schemas.plans import PipelinePlan, StagePlan
from schemas.postmortem import Postmortem
from schemas.recording import LINE
from schemas.reports import Report
from schemas.results import LanguageModelEvaluation
from schemas.timeline import Comparison, Timeline

DIRECTORY = Path(__file__).parent / "json"
FORMATS: dict[str, type[BaseModel] | TypeAdapter[Any]] = {
    "plan.schema.json": PipelinePlan,
    "stage-plan.schema.json": StagePlan,
    "report.schema.json": Report,
    "timeline.schema.json": Timeline,
    "costs.schema.json": Costs,
    "comparison.schema.json": Comparison,
    "evaluation.schema.json": LanguageModelEvaluation,
    "recording.schema.json": LINE,
    "postmortem.schema.json": Postmortem,
    "conformance.schema.json": Conformance,
    "checkpoint.schema.json": CheckpointManifest,
    "inspection.schema.json": CheckpointInspection,
}


STRICT = "http://json-schema.org/draft-04/schema#"
"""The dialect of files that are read: its integers are written without a fraction, as ours are."""
_READ = (PipelinePlan, StagePlan)
_TOLD_APART_BY = ("format", "op")
"""Keys with a default in Python, which a document has to have: the reader looks at them first."""


def generate() -> dict[str, str]:
    """The text of every schema file, by file name."""
    return {name: json.dumps(_schema(model), indent=2) + "\n" for name, model in FORMATS.items()}


def _schema(model: type[BaseModel] | TypeAdapter[Any]) -> dict[str, Any]:
    if isinstance(model, TypeAdapter):
        return model.json_schema(mode="serialization")
    if model in _READ:
        return {"$schema": STRICT, **_as_read(model.model_json_schema(mode="validation"))}
    return model.model_json_schema(mode="serialization")


def _as_read(schema: Any) -> Any:
    """A schema in words of the strict dialect, with the keys that tell documents apart."""
    if isinstance(schema, list):
        return [_as_read(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _as_read(part) for key, part in schema.items()}
    if isinstance(found.get("const"), str):
        found["enum"] = [found.pop("const")]
    properties = found.get("properties")
    if isinstance(properties, dict):
        told = [key for key in _TOLD_APART_BY if key in properties]
        found["required"] = [*told, *(k for k in found.get("required", []) if k not in told)]
    if "patternProperties" in found:  # true is no schema in this dialect
        found["patternProperties"] = {key: {} for key in found["patternProperties"]}
    return found


def main() -> None:
    """Write all schema files."""
    DIRECTORY.mkdir(exist_ok=True)
    for name, text in generate().items():
        (DIRECTORY / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
