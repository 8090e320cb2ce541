"""Reading recordings: what can be read is used, and what cannot is named."""

import fcntl
import json
import subprocess
import sys

import pytest

from schedcc import compile_pipeline
from schedcc.recordings.files import RecordingFileError, read_recording
from schedcc.recordings.recording import PipelineId
from tests.support.recordings import CLOSE, SECOND, lines_of_run, write, write_all

PLAN = compile_pipeline(3, 2)


def test_a_file_may_break_off_anywhere(tmp_path):
    file = write(tmp_path, 0, 1, [*lines_of_run(compile_pipeline(2, 1), 0), CLOSE])
    content = file.read_bytes()
    header_length = content.index(b"\n") + 1
    for length in [*range(0, len(content) - 60, 7), *range(len(content) - 60, len(content))]:
        file.write_bytes(content[:length])
        if length < header_length:
            with pytest.raises(RecordingFileError, match="breaks off in its header"):
                read_recording(tmp_path)
            continue
        (rank,) = read_recording(tmp_path).ranks
        assert rank.cut == (content[length - 1 : length] != b"\n")
        assert len(rank.damages) == rank.cut
        assert len(rank.runs) <= 1
    last = rank.damages[0]
    assert "rank_00000.jsonl: the last line breaks off after" in last


def test_damage_in_the_middle_is_named_by_line_and_the_rest_is_used(tmp_path):
    file = write(tmp_path, 0, 1, [*lines_of_run(compile_pipeline(2, 1), 0), CLOSE])
    lines = file.read_text().splitlines()
    lines[4] = '{"event": "start", "at": -1'  # was the end of the first instruction
    lines.insert(8, '{"event": "landing", "at": 3}')
    file.write_text("\n".join(lines) + "\n")
    recording = read_recording(tmp_path)
    assert len(recording.damages) == 3
    assert "rank_00000.jsonl, line 5: not JSON" in recording.damages[0]
    assert (
        "line 6: ForwardPass(micro_batch=0) starts inside of LoadMicroBatch("
        in (recording.damages[1])
    )
    assert "rank_00000.jsonl, line 9: no event: " in recording.damages[2]
    (rank,) = recording.ranks
    assert rank.closed
    assert len(rank.runs[0].executed) == 5


def test_ends_and_starts_that_hang_in_the_air_are_damage(tmp_path):
    plan, run_start, start, end, *_ = lines_of_run(compile_pipeline(1, 1), 0)
    write(tmp_path, 0, 1, [start, plan, run_start, end, start, {**end, "offset": 1}])
    damages = read_recording(tmp_path).damages
    assert "line 2: LoadMicroBatch(micro_batch=0) starts outside of a run" in damages[0]
    assert "line 5: instruction 0 ends, but did not start" in damages[1]
    assert "line 7: instruction 1 ends, but did not start" in damages[2]


def test_missing_ranks_and_files_that_are_no_recordings_are_named(tmp_path):
    write_all(tmp_path, compile_pipeline(2, 4))
    (tmp_path / "rank_00001.jsonl").unlink()
    (tmp_path / "rank_00002.jsonl").write_text('{"format": "something else"}\n')
    recording = read_recording(tmp_path)
    assert [rank.header.rank for rank in recording.ranks] == [0, 3]
    assert recording.damages[0].startswith("rank_00002.jsonl: not a recording: format is 'someth")
    assert recording.damages[1] == "no recording of stages 1-2"


def test_files_of_different_runs_are_told(tmp_path):
    write(tmp_path, 0, 2, [CLOSE])
    write(tmp_path, 1, 3, [CLOSE])
    assert read_recording(tmp_path).damages == (
        "the files are of different runs: rank_00000.jsonl of 2 stages, rank_00001.jsonl of 3 "
        "stages",
        "no recording of stage 2",
    )


def test_which_pipeline_a_rank_belongs_to_is_what_its_header_says(tmp_path):
    # Two stages, each on two tensor-parallel ranks, and all of that twice.
    places = [(r, s, t) for r in range(2) for s in range(2) for t in range(2)]
    for rank, (replica, stage, tp) in enumerate(places):
        write(tmp_path, stage, 2, [CLOSE], rank=rank, replica=replica, pipeline=f"tp={tp}")
    recording = read_recording(tmp_path)
    assert recording.damages == ()
    ranks = {
        str(pipeline): [rank.header.rank for rank in by_stage.values()]
        for pipeline, by_stage in recording.pipelines.items()
    }
    assert ranks == {
        "replica 0, tp=0": [0, 2],
        "replica 0, tp=1": [1, 3],
        "replica 1, tp=0": [4, 6],
        "replica 1, tp=1": [5, 7],
    }
    (tmp_path / "rank_00007.jsonl").unlink()
    assert read_recording(tmp_path).damages == ("no recording of stage 1 of replica 1, tp=1",)


def test_the_replica_is_not_calculated_from_the_rank(tmp_path):
    for rank, (stage, replica) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):  # ("pp", "dp")
        write(tmp_path, stage, 2, [CLOSE], rank=rank, replica=replica)
    recording = read_recording(tmp_path)
    assert recording.damages == ()
    assert [[r.header.rank for r in p.values()] for p in recording.pipelines.values()] == [
        [0, 2],
        [1, 3],
    ]


def test_ranks_with_one_place_are_of_several_pipelines_in_their_order(tmp_path):
    for rank, stage in enumerate([0, 0, 1, 1]):
        write(tmp_path, stage, 2, [CLOSE], rank=rank)
    recording = read_recording(tmp_path)
    assert recording.damages == ()
    assert [[r.header.rank for r in p.values()] for p in recording.pipelines.values()] == [
        [0, 2],
        [1, 3],
    ]
    (tmp_path / "rank_00003.jsonl").unlink()
    assert read_recording(tmp_path).damages == ("no recording of stage 1 of replica 0, pipeline 1",)


def test_two_files_of_one_rank_are_told(tmp_path):
    file = write(tmp_path, 0, 1, [CLOSE])
    (tmp_path / "rank_00001.jsonl").write_bytes(file.read_bytes())
    damages = read_recording(tmp_path).damages
    assert damages == ("2 files are of rank 0: rank_00000.jsonl, rank_00001.jsonl",)


def test_times_of_one_clock_compare_exactly_and_others_by_the_time_of_day(tmp_path):
    event = {"event": "close", "at": 7}
    second_later = {"monotonic_ns": 6 * SECOND, "wall_ns": 1_700_000_099 * SECOND}
    write(tmp_path, 0, 3, [event])
    write(tmp_path, 1, 3, [event], **second_later)  # its time of day was set meanwhile
    write(tmp_path, 2, 3, [event], **{**second_later, "clock": "another"})
    first, second, third = read_recording(tmp_path).ranks
    assert second.last - first.last == SECOND
    assert third.last - first.last == 99 * SECOND
    assert not read_recording(tmp_path).one_clock


def test_the_plan_of_a_run_is_put_together_from_its_stages(tmp_path):
    write_all(tmp_path, PLAN)
    assert read_recording(tmp_path).plan(PipelineId(0), 0) == PLAN


def test_a_process_that_still_writes_is_told_from_one_that_has_gone(tmp_path):
    file = write(tmp_path, 0, 1, [])
    holder = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX); "
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        assert read_recording(tmp_path).ranks[0].alive
        process.communicate(timeout=30)
    assert not read_recording(tmp_path).ranks[0].alive


def test_a_file_system_without_locks_leaves_the_question_open(tmp_path, monkeypatch):
    write(tmp_path, 0, 1, [])

    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    assert not read_recording(tmp_path).ranks[0].alive


def test_keys_of_later_versions_are_read_over(tmp_path):
    file = write(tmp_path, 0, 1, [CLOSE], mood="good")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[1]["weather"] = "fine"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    recording = read_recording(tmp_path)
    assert recording.damages == ()
    assert recording.ranks[0].closed
