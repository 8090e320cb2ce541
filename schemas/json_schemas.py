"""JSON Schemas of the file formats, generated from the models.

`python -m schemas.json_schemas` writes them to `schemas/json/`; a test keeps them current.
"""

import json
from pathlib import Path

from pydantic import BaseModel

from schemas.plans import PipelinePlan, StagePlan
from schemas.reports import Report
from schemas.results import LanguageModelEvaluation
from schemas.timeline import Timeline

DIRECTORY = Path(__file__).parent / "json"
FORMATS: dict[str, type[BaseModel]] = {
    "plan.schema.json": PipelinePlan,
    "stage-plan.schema.json": StagePlan,
    "report.schema.json": Report,
    "timeline.schema.json": Timeline,
    "evaluation.schema.json": LanguageModelEvaluation,
}


def generate() -> dict[str, str]:
    """The text of every schema file, by file name."""
    return {
        name: json.dumps(model.model_json_schema(mode="serialization"), indent=2) + "\n"
        for name, model in FORMATS.items()
    }


def main() -> None:
    """Write all schema files."""
    DIRECTORY.mkdir(exist_ok=True)
    for name, text in generate().items():
        (DIRECTORY / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
