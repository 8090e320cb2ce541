"""The JSON Schemas of plans and their reader accept and refuse the same documents."""

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft4Validator

from schedcc import PlanFileError, compile_pipeline
from schedcc.io.plan_files import read_plan
from schedcc.io.plan_table import read_plan_table
from schemas import json_schemas
from tests.support.paths import ROOT
from tests.tools.fuzz.edits import EDITS, containers

FILES = ROOT / "tests" / "data" / "plans"
VALIDATORS = {
    name: Draft4Validator(json.loads(json_schemas.generate()[name]))
    for name in ("plan.schema.json", "stage-plan.schema.json")
}
PLANS = [
    (name, json.loads(plan.model_dump_json()))
    for pipeline in (
        compile_pipeline(2, 2),
        compile_pipeline(2, 2, overlap=True),
        compile_pipeline(2, 4, schedule="v_shape", ranks=2),
    )
    for name, plan in zip(VALIDATORS, (pipeline, pipeline.rank(1)), strict=True)
]
PLANS += [
    (name, json.loads((FILES / file).read_text()))
    for name, file in zip(
        (*VALIDATORS, "plan.schema.json"),
        (
            "blocking_m3_s3.plan1.json",
            "stage_1_of_3_m4.stage-plan1.json",
            "overlapped_m5_s4.plan1.json",
        ),
        strict=True,
    )
]


def accepted(read: Any, file: Any) -> bool:
    try:
        read(file)
    except PlanFileError:
        return False
    return True


def agree(folder: Any, name: str, document: Any) -> bool:
    """Whether the document is a plan, of which all three have to say the same."""
    file = folder / "plan.json"
    file.write_text(json.dumps(document))
    by_schema = VALIDATORS[name].is_valid(document)
    assert accepted(read_plan, file) == by_schema, document
    assert accepted(read_plan_table, file) == by_schema, document
    return by_schema


@pytest.mark.parametrize("name", VALIDATORS)
def test_the_schemas_are_schemas(name):
    Draft4Validator.check_schema(VALIDATORS[name].schema)


@pytest.mark.parametrize(("name", "plan"), PLANS)
def test_formats_and_integers_are_needed_as_they_are_written(tmp_path, name, plan):
    assert agree(tmp_path, name, plan)
    assert not agree(tmp_path, name, {k: v for k, v in plan.items() if k != "format"})
    for value in (1.0, True, "1", None, 10**30):
        for key in ("micro_batches", "num_buffers", "stages"):
            assert agree(tmp_path, name, {**plan, key: value}) == (value == 10**30)
    program = plan.get("programs", [plan])[0]
    for value in (0.0, False, "0", -1, 10**30):
        instruction = {**program["steps"][1][0], "micro_batch": value}
        changed = {**program, "steps": [[instruction]]}
        document = {**plan, "programs": [changed]} if "programs" in plan else changed
        assert agree(tmp_path, name, document) == (value in (-1, 10**30))


@pytest.mark.parametrize(("name", "plan"), PLANS)
def test_placements_are_given_with_ranks_or_not_at_all_and_not_in_the_first_format(
    tmp_path, name, plan
):
    implied = {key: plan[key] for key in plan if key not in ("ranks", "placement")}
    first = plan["format"].endswith("/1")
    assert agree(tmp_path, name, implied)
    for keys in ({"ranks": 2}, {"placement": [0, 1]}, {"ranks": 2, "placement": [0, 1]}):
        assert agree(tmp_path, name, {**implied, **keys}) == (len(keys) == 2 and not first)


@settings(max_examples=120)
@given(choice=st.integers(0, len(PLANS) - 1), seed=st.integers(0, 10**9))
def test_a_plan_that_was_edited_anywhere_is_accepted_or_refused_by_all(
    tmp_path_factory, choice, seed
):
    name, plan = PLANS[choice]
    document, edit = json.loads(json.dumps(plan)), random.Random(seed)
    for _ in range(edit.choice((1, 1, 2, 4))):
        everything = list(containers(document))
        place = edit.choice(everything)
        key = edit.choice(list(place) if isinstance(place, dict) else range(len(place)))
        edit.choice(EDITS)(place, key, edit, edit.choice(everything))
        if not document:
            return
    try:
        json.loads(json.dumps(document))
    except RecursionError:
        return
    if isinstance(document.get("format"), str) and document["format"] == plan["format"]:
        agree(tmp_path_factory.getbasetemp(), name, document)
