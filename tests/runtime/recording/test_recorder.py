"""The flight recorder: what is on file, and when."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from runtime import Evaluator
from runtime.recording.line_log import LineLog
from runtime.recording.recorder import Recorder, RecordingError, require_new
from runtime.testing import InMemoryNetwork
from schedcc import compile_pipeline
from schedcc.recordings.files import read_recording
from schedcc.recordings.recording import Recording
from schemas import Phase, Placed, TransferInstruction
from schemas.recording import EVENT, RecordingHeader, rank_file
from tests.support.models_for_tests import batches, mlp, over_stages


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def evaluated(directory: Path, sizes: list[int], **options: Any) -> Recording:
    def call(ev: Evaluator) -> None:
        ev.eval_batch(iter(batches(sizes)), num_micro_batches=len(sizes))

    over_stages(3, call, record=directory, **options)
    return read_recording(directory)


@pytest.mark.parametrize("overlap", [False, True])
def test_every_stage_records_the_instructions_of_its_plan_with_their_bytes(tmp_path, overlap):
    sizes = [2, 3, 1, 2]
    recording = evaluated(tmp_path, sizes, overlap=overlap)
    plan = compile_pipeline(4, 3, overlap=overlap)
    assert recording.damages == ()
    for rank in recording.ranks:
        (run,) = rank.runs
        program = run.plan.program.program()
        recorded = {"steps": program.steps, "epilogue": program.epilogue}
        assert run.plan.header.model_copy(update=recorded) == plan.stage(rank.header.stage_id)
        assert [e.placed for e in run.executed] == list(program.placed())
        for executed in run.executed:
            assert executed.end is not None
            instruction = executed.placed.instruction
            moves = isinstance(instruction, TransferInstruction)
            if moves and instruction.effects.phase is not Phase.POST:
                rows = sizes[instruction.micro_batch]
                assert executed.nbytes == rows * 6 * 4  # float32 [rows, 6]
            else:
                assert executed.nbytes is None
        times = [t for e in run.executed for t in (e.start, e.end)]
        assert times == sorted(times)
        assert rank.closed
        assert not rank.failed


def test_every_line_is_of_the_format(tmp_path):
    evaluated(tmp_path, [2, 2])
    for stage in range(3):
        head, *events = lines(tmp_path / rank_file(stage))
        header = RecordingHeader.model_validate(head)
        assert (header.rank, header.stage_id, header.stages, header.pid) == (
            stage,
            stage,
            3,
            os.getpid(),
        )
        parsed = [EVENT.validate_python(event) for event in events]
        assert [json.loads(event.model_dump_json(exclude_none=True)) for event in parsed] == [
            {k: v for k, v in event.items() if v is not None} for event in events
        ]


def test_a_start_is_on_file_before_its_instruction_is_executed(tmp_path):
    seen = []

    class Looks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(lines(tmp_path / rank_file(0))[-1])
            return x

    over_stages(
        1,
        lambda ev: ev.eval_batch(iter(batches([2, 2])), num_micro_batches=2),
        layers=lambda: [nn.Linear(4, 6), Looks()],
        record=tmp_path,
    )
    during_run = [line for line in seen if line["event"] == "start"]
    assert [line["instruction"]["micro_batch"] for line in during_run[-2:]] == [0, 1]
    assert {line["instruction"]["op"] for line in during_run} == {"ForwardPass"}


def test_runs_are_numbered_and_a_plan_is_written_once(tmp_path):
    def call(ev: Evaluator) -> None:
        for count in (2, 3, 2):
            ev.eval_batch(iter(batches([2] * count)), num_micro_batches=count)

    over_stages(2, call, record=tmp_path)
    for rank in read_recording(tmp_path).ranks:
        assert [run.number for run in rank.runs] == [0, 1, 2]
        assert [run.plan.header.micro_batches for run in rank.runs if run.plan] == [2, 3, 2]
        assert rank.runs[0].fingerprint == rank.runs[2].fingerprint
        events = [line.get("event") for line in lines(rank.file)]
        assert events.count("plan") == 2


def test_errors_before_a_run_are_recorded_and_told_from_their_symptoms(tmp_path):
    def call(ev: Evaluator) -> None:
        data = None if ev.stage_id == 0 else iter(batches([2] * 2))
        with pytest.raises((ValueError, RuntimeError)):
            ev.eval_batch(data, num_micro_batches=2)
        ev.eval_batch(iter(batches([2] * 2)), num_micro_batches=2)

    over_stages(2, call, record=tmp_path)
    errors = [rank.errors for rank in read_recording(tmp_path).ranks]
    (_, origin), (_, told) = errors[0][0], errors[1][0]
    assert [len(of_rank) for of_rank in errors] == [1, 1]
    assert (origin.kind, origin.symptom) == ("DataError", False)
    assert "stage 0 reads micro-batches, but its data is None" in origin.traceback
    assert told.symptom
    assert told.kind in ("RemoteError", "ConnectionLostError")  # heard between waits, or in one
    assert all(not rank.failed for rank in read_recording(tmp_path).ranks)


def test_an_error_in_a_run_is_recorded_once_with_the_instruction_left_open(tmp_path):
    class Fails(nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls == 2:
                raise ArithmeticError("second")
            return x

    def call(ev: Evaluator) -> None:
        with pytest.raises(ArithmeticError):
            ev.eval_batch(iter(batches([2] * 3)), num_micro_batches=3)

    over_stages(1, call, layers=lambda: [nn.Linear(4, 6), Fails()], record=tmp_path)
    (rank,) = read_recording(tmp_path).ranks
    assert rank.failed
    assert rank.closed
    ((_, error),) = rank.errors
    assert "runtime/recording/recorder.py" not in error.traceback
    assert error.traceback.endswith(
        "at stage 0, step 1: ForwardPass(stage=0, micro_batch=1, buffer=1)\n"
    )
    inside = rank.runs[0].executed.inside
    assert inside is not None
    assert str(inside.placed.instruction) == "ForwardPass(micro_batch=1)"


def test_an_interruption_is_a_symptom(tmp_path):
    recorder = Recorder(tmp_path, InMemoryNetwork(1).endpoint(0))
    with pytest.raises(KeyboardInterrupt), recorder.evaluation():
        raise KeyboardInterrupt
    recorder.close()
    ((_, error),) = read_recording(tmp_path).ranks[0].errors
    assert (error.kind, error.symptom) == ("KeyboardInterrupt", True)


def test_a_recorder_that_is_let_go_of_closes_its_file(tmp_path):
    recorder = Recorder(tmp_path, InMemoryNetwork(1).endpoint(0))
    assert not read_recording(tmp_path).ranks[0].closed
    del recorder
    assert read_recording(tmp_path).ranks[0].closed


def test_ranks_of_replicas_have_files_of_their_own(tmp_path):
    network = InMemoryNetwork(2, replicas=2)
    recorders = [Recorder(tmp_path, network.endpoint(s, r)) for r in (0, 1) for s in (0, 1)]
    headers = [rank.header for rank in read_recording(tmp_path).ranks]
    assert [(h.rank, h.replica, h.stage_id) for h in headers] == [
        (0, 0, 0),
        (1, 0, 1),
        (2, 1, 0),
        (3, 1, 1),
    ]
    del recorders


def test_a_directory_that_holds_a_recording_is_refused(tmp_path):
    evaluated(tmp_path / "r", [2])
    before = (tmp_path / "r" / rank_file(0)).read_bytes()
    expected = "already holds a recording .rank_00000.jsonl., needed a new or empty directory"
    with pytest.raises(RecordingError, match=expected):
        Evaluator(mlp(), record=tmp_path / "r")
    with pytest.raises(RecordingError, match=expected):
        require_new(tmp_path / "r")
    assert (tmp_path / "r" / rank_file(0)).read_bytes() == before
    require_new(tmp_path / "another")


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordingError, match=r"file: cannot be written: "):
        Evaluator(mlp(), record=tmp_path / "file")


def test_the_directory_may_be_a_string_and_nothing_else(tmp_path):
    Evaluator(mlp(), record=str(tmp_path / "r"))
    assert (tmp_path / "r").is_dir()
    for wrong in (True, 3, "", tmp_path.open):
        with pytest.raises(RecordingError, match=r"^record is .*, needed the path of a dir"):
            Evaluator(mlp(), record=wrong)


def test_a_full_disk_ends_the_recording_and_not_the_evaluation(tmp_path, monkeypatch):
    log = LineLog(tmp_path / "log")
    log.write("one")
    monkeypatch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.warns(RuntimeWarning, match="log: recording ends here: No space left"):
        log.write("two")
    monkeypatch.undo()
    log.write("three")
    log.close()
    assert (tmp_path / "log").read_text() == "one\n"


def test_a_line_that_was_written_in_part_ends_the_recording(tmp_path, monkeypatch):
    log, write = LineLog(tmp_path / "log"), os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:2]))
    with pytest.warns(RuntimeWarning, match="only 2 of 6 bytes were written"):
        log.write("first")
    log.write("second")
    assert (tmp_path / "log").read_text() == "fi"


def test_results_are_the_same_with_and_without_a_recording(tmp_path):
    def call(ev: Evaluator) -> Any:
        return ev.eval_batch(iter(batches([2, 3])), num_micro_batches=2).losses

    assert over_stages(2, call, record=tmp_path) == over_stages(2, call)


def test_nothing_is_recorded_of_an_instruction_that_moves_nothing(tmp_path):
    recorder = Recorder(tmp_path, InMemoryNetwork(1).endpoint(0))
    placed = next(compile_pipeline(1, 1).stage(0).program.placed())
    assert isinstance(placed, Placed)
    recorder.started(placed)
    recorder.finished(placed)
    recorder.close()
    assert [set(line) for line in lines(tmp_path / rank_file(0))[1:3]] == [
        {"event", "at", "offset", "step", "instruction"},
        {"event", "at", "offset"},
    ]
