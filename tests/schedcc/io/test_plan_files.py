"""Plans as files: lossless, and open to further keys."""

import copy
import json
import pickle
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schedcc import Outcome, check, compile_pipeline, compile_stage
from schedcc.io.plan_files import read_plan
from schedcc.testing.strategies import at_corners, outcomes, sizes
from schemas import (
    BroadcastLoss,
    ForwardPass,
    PipelinePlan,
    RankProgram,
    Report,
    StagePlan,
    json_schemas,
)

EXAMPLE = """
{"format": "schedcc.plan/2", "schedule": "inference", "micro_batches": 2, "stages": 2,
 "ranks": 2, "placement": [0, 1], "num_buffers": 2,
 "programs": [{"rank": 0,
   "steps": [[{"op": "LoadMicroBatch", "stage": 0, "micro_batch": 0, "buffer": 0}, {"op": "ForwardPass", "stage": 0, "micro_batch": 0, "buffer": 0}],
             [{"op": "LoadMicroBatch", "stage": 0, "micro_batch": 1, "buffer": 1}, {"op": "SendActivation", "stage": 0, "micro_batch": 0, "buffer": 0, "peer": 1},
              {"op": "ForwardPass", "stage": 0, "micro_batch": 1, "buffer": 1}],
             [{"op": "SendActivation", "stage": 0, "micro_batch": 1, "buffer": 1, "peer": 1}]],
   "epilogue": [{"op": "BroadcastLoss", "source": 1}]},
  {"rank": 1,
   "steps": [[],
             [{"op": "LoadMicroBatch", "stage": 1, "micro_batch": 0, "buffer": 0}, {"op": "RecvActivation", "stage": 1, "micro_batch": 0, "buffer": 0, "peer": 0},
              {"op": "ForwardPass", "stage": 1, "micro_batch": 0, "buffer": 0}],
             [{"op": "LoadMicroBatch", "stage": 1, "micro_batch": 1, "buffer": 1}, {"op": "RecvActivation", "stage": 1, "micro_batch": 1, "buffer": 1, "peer": 0},
              {"op": "ForwardPass", "stage": 1, "micro_batch": 1, "buffer": 1}]],
   "epilogue": [{"op": "ReduceLoss", "reduction": "avg"}, {"op": "BroadcastLoss", "source": 1}]}]}
"""  # noqa: E501 (as the format is documented)


@at_corners(outcome=Outcome())
@given(size=sizes(8, 6), outcome=outcomes())
def test_a_plan_survives_its_json(size, outcome):
    plan = compile_pipeline(*size, outcome=outcome)
    text = plan.model_dump_json()
    again = PipelinePlan.model_validate_json(text)
    assert again == plan
    assert again.model_dump_json() == text
    assert again.fingerprint == plan.fingerprint
    stage = plan.stage(size[1] - 1)
    assert StagePlan.model_validate_json(stage.model_dump_json()) == stage


@given(number=st.integers())
def test_numbers_of_any_size_survive_json(number):
    forward = ForwardPass(stage=number, micro_batch=number, buffer=-number)
    program = RankProgram(rank=number, steps=((forward,),), epilogue=())
    plan = PipelinePlan(micro_batches=abs(number) + 1, stages=1, programs=(program,))
    assert PipelinePlan.model_validate_json(plan.model_dump_json()) == plan


def test_the_documented_example_is_the_compiled_plan(tmp_path):
    file = tmp_path / "plan.json"
    file.write_text(EXAMPLE)
    assert read_plan(file) == compile_pipeline(2, 2)


def test_a_plan_without_epilogues_has_none(tmp_path):
    data = json.loads(EXAMPLE)
    for program in data["programs"]:
        del program["epilogue"]
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(data))
    plan = read_plan(file)
    assert plan == compile_pipeline(2, 2, outcome=Outcome(compute_loss=False))
    assert check(plan).ok


def test_extensions_are_kept_on_plans_and_programs(tmp_path):
    data = json.loads(EXAMPLE)
    data["x-made-by"] = {"name": "somebody", "costs": [1, 2.5, None]}
    data["programs"][1]["x-device"] = "cuda:1"
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(data))
    plan = read_plan(file)
    assert json.loads(plan.model_dump_json()) == data
    assert check(plan).ok
    assert plan != compile_pipeline(2, 2)


def test_extensions_change_nothing_but_the_fingerprint():
    plan = compile_pipeline(2, 2)
    data = {**json.loads(plan.model_dump_json()), "x-epilogue": []}
    extended = PipelinePlan.model_validate(data)
    assert extended.programs == plan.programs
    assert check(extended) == check(plan)
    assert extended.fingerprint != plan.fingerprint


def test_the_json_schemas_know_the_same_keys_as_the_reader():
    schemas = json_schemas.generate()
    plan = json.loads(schemas["plan.schema.json"])
    stage_plan = json.loads(schemas["stage-plan.schema.json"])
    for schema, model in (
        (plan["$defs"]["PipelinePlan"], PipelinePlan),
        (plan["$defs"]["RankProgram"], RankProgram),
        (stage_plan["$defs"]["StagePlan"], StagePlan),
    ):
        assert set(schema["properties"]) == set(model.model_fields)
        assert schema["additionalProperties"] is False
        assert schema["patternProperties"] == {"^x-": {}}  # anything
    first = plan["$defs"]["RankProgramOfFirstFormat"]
    assert set(first["properties"]) == {"stage_id", "steps", "epilogue"}


def test_stage_plans_are_files_too(tmp_path):
    plan = compile_stage(3, 4, 2)
    file = tmp_path / "stage.json"
    file.write_text(plan.model_dump_json())
    assert read_plan(file) == plan


def test_a_changed_copy_has_its_own_fingerprint():
    plan = compile_pipeline(2, 2)
    before = plan.fingerprint
    for copied in (copy.copy(plan), copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
        assert copied == plan
        assert copied.fingerprint == before
    assert plan.model_copy(update={"micro_batches": 3}).fingerprint != before
    assert plan.model_copy(update={"micro_batches": 3}, deep=True).fingerprint != before


def test_plans_are_values():
    assert len({compile_pipeline(2, 2), compile_pipeline(2, 2), compile_pipeline(2, 3)}) == 2
    with pytest.raises(ValidationError, match="frozen"):
        compile_pipeline(2, 2).micro_batches = 3


@pytest.mark.parametrize("name", json_schemas.FORMATS)
def test_the_json_schemas_are_current(name):
    assert (json_schemas.DIRECTORY / name).read_text() == json_schemas.generate()[name]


def test_no_json_schema_is_left_over():
    assert {path.name for path in json_schemas.DIRECTORY.iterdir()} == set(json_schemas.generate())


def test_reports_survive_their_json():
    sound, unsound = check(compile_pipeline(2, 2)), check(PipelinePlan.model_validate(BARE))
    for report in (sound, unsound):
        text = report.model_dump_json()
        assert json.loads(text)["ok"] == report.ok
        assert Report.model_validate_json(text) == report


BARE = {"format": "schedcc.plan/1", "micro_batches": 10**12, "stages": 10**12, "programs": []}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"programs": [{"stage_id": 10**12 - 1, "steps": []}]},
        {"programs": [{"stage_id": 10**30, "steps": []}], "num_buffers": 10**12},
        {"micro_batches": 10**300, "stages": 10**300},
        {"format": "schedcc.stage-plan/1", "stage_id": 7, "steps": []},
    ],
    ids=["no programs", "the last program", "no such stage", "very large", "one stage"],
)
def test_a_small_file_with_huge_numbers_is_checked_in_no_time(tmp_path, changes):
    file = tmp_path / "plan.json"
    data = {**BARE, **changes}
    if "steps" in data:
        del data["programs"]
    file.write_text(json.dumps(data))
    began = perf_counter()
    report = check(read_plan(file))
    assert perf_counter() - began < 1
    assert not report.ok
    assert all(len(str(finding)) < 1000 for finding in report.findings)


def test_instructions_refuse_further_keys():
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        BroadcastLoss(source=1, colour="red")
