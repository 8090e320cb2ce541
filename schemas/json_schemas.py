"""JSON Schemas of the file formats, generated from the models.

`python -m schemas.json_schemas` writes them to `schemas/json/`; a test keeps them current.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from schemas.checkpoints import CheckpointInspection, CheckpointManifest
from schemas.costs import Costs
from schemas.plan_schemas import plan_schema
from schemas.plans import PipelinePlan, StagePlan
from schemas.recording import LINE
from schemas.reports.breakdown import Breakdowns
from schemas.reports.check import Report
from schemas.reports.conformance import Conformance
from schemas.reports.postmortem import Postmortem
from schemas.reports.results import (
    DocumentScore,
    LanguageModelEvaluation,
    MicroBatchLosses,
    ResultsHeader,
    TokenScore,
)
from schemas.reports.timeline import Comparison, Timeline

DIRECTORY = Path(__file__).parent / "json"
FORMATS: dict[str, type[BaseModel] | TypeAdapter[Any]] = {
    "plan.schema.json": PipelinePlan,
    "stage-plan.schema.json": StagePlan,
    "report.schema.json": Report,
    "timeline.schema.json": Timeline,
    "costs.schema.json": Costs,
    "comparison.schema.json": Comparison,
    "breakdown.schema.json": Breakdowns,
    "evaluation.schema.json": LanguageModelEvaluation,
    "document-score.schema.json": DocumentScore,
    "token-score.schema.json": TokenScore,
    "results.schema.json": TypeAdapter(ResultsHeader | MicroBatchLosses),
    "recording.schema.json": LINE,
    "postmortem.schema.json": Postmortem,
    "conformance.schema.json": Conformance,
    "checkpoint.schema.json": CheckpointManifest,
    "inspection.schema.json": CheckpointInspection,
}


_READ = (PipelinePlan, StagePlan)


def generate() -> dict[str, str]:
    """The text of every schema file, by file name."""
    return {name: json.dumps(_schema(model), indent=2) + "\n" for name, model in FORMATS.items()}


def _schema(model: type[BaseModel] | TypeAdapter[Any]) -> dict[str, Any]:
    if isinstance(model, TypeAdapter):
        return model.json_schema(mode="serialization")
    if model in _READ:
        return plan_schema(model)
    return model.model_json_schema(mode="serialization")


def main() -> None:
    """Write all schema files."""
    DIRECTORY.mkdir(exist_ok=True)
    for name, text in generate().items():
        (DIRECTORY / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
