"""Lines that are read many at a time say what they say one by one; and every reader has bounds."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedcc import compile_pipeline
from schedcc.analysis.graph import one_program_a_rank
from schedcc.io.plan_files import read_plan
from schedcc.io.plan_table import read_plan_table
from schedcc.recordings import events, files
from schedcc.recordings.conform import conform
from schedcc.recordings.files import RecordingFileError, read_recording
from schedcc.recordings.postmortem import postmortem
from schedcc.recordings.recording import PipelineId, Recording
from schedcc.testing.strategies import at_corners, sizes
from tests.support.recordings import BROKEN, CLOSE, Line, lines_of_run, until, write, write_all

PLAN = compile_pipeline(4, 2)


def told(recording: Recording) -> list[Any]:
    """All that a recording says."""
    runs = [
        (
            *(rank.failed, rank.closed, rank.cut, rank.last, rank.damages, rank.errors),
            *(run.number, run.end, run.told, run.micro_batches, list(run.executed)),
        )
        for rank in recording.ranks
        for run in rank.runs
    ]
    return [recording.damages, *runs]


def edited(lines: list[Line], edit: random.Random) -> list[Line]:
    lines = json.loads(json.dumps(lines))
    for _ in range(edit.choice((0, 1, 1, 3))):
        number = edit.randrange(len(lines))
        line = lines[number]
        match edit.choice(("drop", "repeat", "swap", "note", "at", "micro_batch", "op", "cut")):
            case "drop" if len(lines) > 1:
                del lines[number]
            case "repeat":
                lines.insert(number, dict(line))
            case "swap":
                other = edit.randrange(len(lines))
                lines[number], lines[other] = lines[other], lines[number]
            case "note":
                line["x-note"] = edit.choice((None, [1], "{"))
            case "at":
                line["at"] = edit.choice((-1, 1.0, True, "1", 2**61, 0, 3))
            case "micro_batch" if "micro_batch" in line.get("instruction", {}):
                line["instruction"]["micro_batch"] = edit.choice((True, 1.0, "1", -1, 2, 2**70))
            case "op" if "instruction" in line:
                line["instruction"]["op"] = edit.choice(("ForwardPass", "Backward", 1))
            case "cut":
                del lines[number + 1 :]
    return lines


@at_corners(overlap=True, seed=0, block=1)
@settings(max_examples=60)
@given(
    size=sizes(5, 3), overlap=st.booleans(), seed=st.integers(0, 10**6), block=st.integers(1, 2000)
)
def test_blocks_of_any_size_say_what_single_lines_say(tmp_path_factory, size, overlap, seed, block):
    plan, edit = compile_pipeline(*size, overlap=overlap), random.Random(seed)
    directory = tmp_path_factory.mktemp("r")
    for stage in range(plan.stages):
        lines = edited([*lines_of_run(plan, stage), *lines_of_run(plan, stage, run=1)], edit)
        file = write(directory, stage, plan.stages, [*lines, *edit.choice(([CLOSE], [BROKEN], []))])
        if edit.random() < 0.3:
            file.write_bytes(file.read_bytes()[: -edit.randint(1, 300)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_AT_ONCE", block)
        at_once = read_recording(directory)
        patch.setattr(events, "executed_pairs", lambda *_: None)
        one_by_one = read_recording(directory)
    assert told(at_once) == told(one_by_one)
    assert postmortem(at_once) == postmortem(one_by_one)
    assert conform(plan, at_once) == conform(plan, one_by_one)


@at_corners(overlap=True)
@settings(max_examples=40)
@given(size=sizes(5, 4), overlap=st.booleans())
def test_the_table_of_a_file_is_that_of_its_plan(tmp_path_factory, size, overlap):
    plan = compile_pipeline(*size, overlap=overlap)
    for each in (plan, plan.stage(plan.stages - 1)):
        file = tmp_path_factory.mktemp("p") / "plan.json"
        file.write_text(each.model_dump_json())
        table = read_plan_table(file)
        read = read_plan(file)
        whole = plan if each is plan else plan.model_copy(update={"programs": plan.programs[-1:]})
        expected = one_program_a_rank(whole)
        assert each == read
        assert table.rank_ids.tolist() == expected.rank_ids.tolist()
        assert table.epilogues == expected.epilogues
        for column, other in zip(table.rows.columns, expected.rows.columns, strict=True):
            assert column.tolist() == other.tolist()


def test_a_contradiction_is_listed_so_often_and_then_counted(tmp_path):
    plan = compile_pipeline(150, 2)
    for stage in range(2):
        lines = lines_of_run(plan, stage)
        if stage == 1:
            for line in lines:
                line["at"] //= 1000
        write(tmp_path, stage, 2, [*lines, CLOSE])
    found = conform(plan, read_recording(tmp_path))
    assert len(found.deviations) == 101
    assert found.deviations[-1].message.endswith("more of these")


def test_bad_lines_are_listed_so_often_and_then_counted(tmp_path):
    lines = [*lines_of_run(PLAN, 0), *[{"event": "landing"}] * 250, CLOSE]
    write(tmp_path, 0, 1, lines)
    recording = read_recording(tmp_path)
    assert len(recording.damages) == 101
    assert recording.damages[-1] == "rank_00000.jsonl: 150 more lines that cannot be used"
    assert recording.ranks[0].closed


def test_a_file_that_has_no_end_is_not_read(tmp_path):
    (tmp_path / "rank_00000.jsonl").symlink_to("/dev/zero")
    with pytest.raises(RecordingFileError, match="needed a regular file"):
        read_recording(tmp_path)
    os.mkfifo(tmp_path / "rank_00001.jsonl")
    write(tmp_path, 2, 3, [CLOSE])
    assert [rank.header.rank for rank in read_recording(tmp_path).ranks] == [2]


def test_lines_and_files_beyond_their_bounds_are_not_read_on(tmp_path, monkeypatch):
    file = write(tmp_path, 0, 1, [*until(lines_of_run(PLAN, 0), 5, 5), CLOSE])
    monkeypatch.setattr(files, "_AT_ONCE", 64)
    monkeypatch.setattr(files, "MOST_BYTES", file.stat().st_size - 20)
    (damage,) = read_recording(tmp_path).damages
    assert "the rest is not read" in damage
    monkeypatch.undo()
    monkeypatch.setattr(files, "_AT_ONCE", 64)
    monkeypatch.setattr(files, "LONGEST_LINE", 2000)
    with file.open("a") as opened:
        opened.write('{"event": "' + "x" * 5000)
    damages = read_recording(tmp_path).damages
    assert any("needed at most 2,000 bytes in a line" in damage for damage in damages)


def test_more_files_than_there_can_be_ranks_are_refused(tmp_path, monkeypatch):
    write_all(tmp_path, PLAN)
    monkeypatch.setattr(files, "MOST_FILES", 1)
    with pytest.raises(RecordingFileError, match="holds 2 files of ranks, needed at most 1"):
        read_recording(tmp_path)


def test_a_plan_of_another_stage_is_damage(tmp_path: Path):
    write(tmp_path, 0, 2, lines_of_run(PLAN, 1))
    recording = read_recording(tmp_path)
    assert recording.damages[0].endswith("line 2: holds a plan of stage 1, needed one of stage 0")
    assert recording.plan(PipelineId(0), 0) is None
    assert postmortem(recording).cause is not None
