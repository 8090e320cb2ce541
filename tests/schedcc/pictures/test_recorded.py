"""Pictures of recordings."""

import tracemalloc

import pytest

from schedcc import Costs, compile_pipeline, simulate
from schedcc.pictures.content import content
from schedcc.pictures.recorded import recording_panels
from schedcc.recordings.files import read_recording
from schedcc.recordings.timed import measured_costs
from tests.support.pictures import rows_of
from tests.support.recorded_lines import (
    BROKEN,
    CLOSE,
    COSTS,
    lines_of_run,
    until,
    write,
    write_all,
)


def test_a_recorded_run_is_shown_at_its_times(tmp_path):
    plan = compile_pipeline(3, 2)
    (drawn,) = recording_panels(read_recording(write_all(tmp_path, plan)))
    timeline = simulate(plan, COSTS)
    for shown, stage in zip(rows_of(content("", [drawn])), timeline.stages, strict=True):
        assert [(name, start, end) for name, *_, start, end in shown] == [
            (span.instruction.op, pytest.approx(span.start), pytest.approx(span.end))
            for span in stage.spans
        ]
    assert drawn.length == pytest.approx(timeline.makespan)
    assert drawn.breakdown is not None
    assert [rank.stages[0].forward for rank in drawn.breakdown.ranks] == [3.0, 3.0]


@pytest.mark.parametrize("overlap", [False, True])
def test_recorded_arrows_end_when_the_receiver_had_the_activation(tmp_path, overlap):
    plan = compile_pipeline(3, 2, overlap=overlap)
    (drawn,) = recording_panels(read_recording(write_all(tmp_path, plan, runs=2)))
    rows, arrows = drawn.boxes.table.rows, drawn.arrows
    assert len(arrows.send) == 2 * 3
    assert drawn.boxes.run[arrows.send].tolist() == drawn.boxes.run[arrows.receive].tolist()
    assert rows.micro_batch[arrows.send].tolist() == rows.micro_batch[arrows.receive].tolist()
    waits = {
        (run, m): end
        for run, m, end, name in zip(
            drawn.boxes.run.tolist(),
            rows.micro_batch.tolist(),
            drawn.boxes.end.tolist(),
            [row[0] for rank in rows_of(content("", [drawn])) for row in rank],
            strict=True,
        )
        if name == ("WaitRecvActivation" if overlap else "RecvActivation")
    }
    keys = zip(
        drawn.boxes.run[arrows.receive].tolist(),
        rows.micro_batch[arrows.receive].tolist(),
        strict=True,
    )
    assert [waits[key] for key in keys] == arrows.end.tolist()


def test_one_run_can_be_chosen(tmp_path):
    recording = read_recording(write_all(tmp_path, compile_pipeline(2, 2), runs=3))
    (both,) = recording_panels(recording)
    (one,) = recording_panels(recording, run=1)
    assert set(both.boxes.run.tolist()) == {0, 1, 2}
    assert set(one.boxes.run.tolist()) == {1}
    assert one.boxes.start.min() == 0
    with pytest.raises(ValueError, match=r"run is 3, needed a run of the recording \(0, 1, 2\)"):
        recording_panels(recording, run=3)


def test_errors_and_what_was_never_left_are_marked_where_they_are(tmp_path):
    lines = until(lines_of_run(compile_pipeline(2, 1), 0), 1, 0)
    write(tmp_path, 0, 1, [*lines, BROKEN])
    (drawn,) = recording_panels(read_recording(tmp_path))
    texts = [(mark.text, mark.rank) for mark in drawn.marks]
    assert texts == [
        ("rank 0 was in this instruction at the end", 0),
        ("rank 0 (stage 0): ValueError: broken", 0),
    ]


def test_a_recording_without_a_run_is_one_sentence(tmp_path):
    write(tmp_path, 0, 1, [CLOSE])
    with pytest.raises(ValueError, match="no rank began a run: nothing to draw"):
        recording_panels(read_recording(tmp_path))


def test_replicas_are_drawn_one_above_the_other_on_one_axis(tmp_path):
    plan = compile_pipeline(2, 2)
    for replica in range(2):
        for rank in range(2):
            lines = [*lines_of_run(plan, rank), CLOSE]
            ids = {"rank": 2 * replica + rank, "stage_id": rank, "replica": replica}
            write(tmp_path, ids["rank"], 2, lines, **ids)
    drawn = recording_panels(read_recording(tmp_path))
    assert [panel.title for panel in drawn] == ["recorded: replica 0", "recorded: replica 1"]
    assert [len(panel.ranks) for panel in drawn] == [2, 2]


def test_costs_are_measured_as_the_median_forward_of_each_stage(tmp_path):
    recording = read_recording(write_all(tmp_path, compile_pipeline(3, 2)))
    assert measured_costs(recording) == Costs(forward=(1.0, 1.0))
    lines = until(lines_of_run(compile_pipeline(2, 1), 0), 0, 0)
    write(tmp_path / "cut", 0, 1, lines)
    with pytest.raises(ValueError, match="the recording has no forward of stage 0"):
        measured_costs(read_recording(tmp_path / "cut"))


def test_a_recording_that_claims_any_number_of_stages_takes_no_memory_for_them(tmp_path):
    lines = lines_of_run(compile_pipeline(1, 1), 0)
    lines[0]["plan"]["stages"] = 10**6
    write(tmp_path, 0, 1, lines)
    recording = read_recording(tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="the recording has no forward of stage 1"):
            measured_costs(recording)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_costs_are_not_measured_from_times_that_run_backwards(tmp_path):
    lines = lines_of_run(compile_pipeline(1, 1), 0)
    late = [line | {"at": 10**9 - line["at"]} for line in lines]
    write(tmp_path, 0, 1, late)
    with pytest.raises(ValueError, match="the forwards of stage 0 ended 1 s before they began"):
        measured_costs(read_recording(tmp_path))
