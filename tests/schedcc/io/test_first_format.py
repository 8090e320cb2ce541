"""Plan files of the first format, written when every rank had one stage, are read for ever."""

import json
from pathlib import Path

import pytest

from schedcc import Outcome, PlanFileError, check, compile_pipeline, compile_stage
from schedcc.io.plan_files import read_plan
from schemas import PipelinePlan, StagePlan
from tests.support.paths import ROOT

FILES = ROOT / "tests" / "data" / "plans"
EVERYTHING = Outcome(return_logits=True, logits_to="first", replicas=2, compute_metrics=True)


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("blocking_m3_s3.plan1.json", compile_pipeline(3, 3)),
        ("overlapped_m5_s4.plan1.json", compile_pipeline(5, 4, overlap=True)),
        ("single_stage_m2.plan1.json", compile_pipeline(2, 1)),
        ("stage_1_of_3_m4.stage-plan1.json", compile_stage(4, 3, 1)),
    ],
)
def test_a_file_of_the_first_format_is_the_plan_of_today(name, plan):
    read = read_plan(FILES / name)
    assert read == plan
    assert read.format in ("schedcc.plan/2", "schedcc.stage-plan/2")
    assert json.loads(read.model_dump_json()) == json.loads(plan.model_dump_json())


def test_its_extensions_are_kept():
    read = read_plan(FILES / "outcome_extensions_m2_s3.plan1.json")
    again = json.loads(read.model_dump_json())
    assert again.pop("x-origin") == "a tool"
    assert again["programs"][1].pop("x-note") == [1]
    expected = compile_pipeline(2, 3, overlap=True, outcome=EVERYTHING)
    assert PipelinePlan.model_validate(again) == expected
    assert check(read).ok


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d.update(ranks=3), "'ranks' is not a key of a plan of the first format"),
        (lambda d: d.update(placement=[0]), "'placement' is not a key of a plan of the first"),
        (
            lambda d: d["programs"][0].update(rank=0),
            "'rank' is not a key of a program of the first format",
        ),
        (
            lambda d: d["programs"][0]["steps"][0][0].update(stage=0),
            "'stage' is not a key of an instruction of the first format",
        ),
    ],
)
def test_what_came_later_means_nothing_in_it(tmp_path, change, sentence):
    data = json.loads((FILES / "blocking_m3_s3.plan1.json").read_text())
    change(data)
    file = Path(tmp_path) / "plan.json"
    file.write_text(json.dumps(data))
    with pytest.raises(PlanFileError, match=sentence):
        read_plan(file)


def test_a_plan_with_placement_survives_its_file(tmp_path):
    plan = compile_pipeline(5, 4, schedule="interleaved", ranks=2, overlap=True)
    for rank in (0, 1):
        file = Path(tmp_path) / f"{rank}.json"
        file.write_text(plan.rank(rank).model_dump_json())
        read = read_plan(file)
        assert isinstance(read, StagePlan)
        assert read == plan.rank(rank) == plan.stage(rank + 2)
        assert read.stage_ids == (rank, rank + 2)
        assert check(read).ok
