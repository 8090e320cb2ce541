"""Where the time went."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedcc import Costs, compile_pipeline
from schedcc.recordings.files import read_recording
from schedcc.recordings.timed import recorded_breakdown
from schedcc.simulation.simulate import prediction
from schedcc.testing.strategies import at_corners, sizes
from schemas.reports.breakdown import RankSeconds, StageSeconds
from tests.support.recorded_lines import CLOSE, write, write_all


@given(size=sizes(5, 4), overlap=st.booleans(), transfer=st.sampled_from([0.0, 0.25, 2.0]))
@at_corners(overlap=True, transfer=0.25)
@settings(max_examples=20)
def test_the_parts_of_a_rank_are_all_of_its_time(size, overlap, transfer):
    predicted = prediction(compile_pipeline(*size, overlap=overlap), Costs(transfer=transfer))
    found = predicted.breakdown
    assert found.seconds == predicted.makespan
    for rank, busy in zip(found.ranks, predicted.busy, strict=True):
        parts = [(s.forward, s.data, s.receive, s.send) for s in rank.stages]
        total = sum(map(sum, parts)) + rank.other + rank.idle
        assert total == pytest.approx(found.seconds)
        assert sum(s.forward for s in rank.stages) == pytest.approx(busy)


def test_waiting_for_data_receives_and_sends_is_told_apart():
    # stage 0  L0 0   F0 0.5  L1 1.5  S0 2    F1 2.5  S1 3.5  (receive begins at 5) 5.5
    # stage 1  L0 0   R0 0.5  F0 2.5  L1 4.5  R1 5    F1 5.5  7.5
    plan = compile_pipeline(2, 2)
    found = prediction(plan, Costs(forward=(1.0, 2.0), transfer=0.5, load=0.5)).breakdown
    assert found.ranks == (
        RankSeconds(
            rank=0,
            stages=(StageSeconds(stage_id=0, forward=2.0, data=1.0, receive=0.0, send=2.5),),
            other=2.0,
            idle=0.0,
        ),
        RankSeconds(
            rank=1,
            stages=(StageSeconds(stage_id=1, forward=4.0, data=1.0, receive=2.5, send=0.0),),
            other=0.0,
            idle=0.0,
        ),
    )
    assert found.bottleneck == 1


def test_a_slow_loader_makes_its_stage_the_bottleneck():
    found = prediction(compile_pipeline(8, 3), Costs(forward=(1.0, 1.5, 1.0), load=1.0)).breakdown
    assert found.bottleneck == 0


def test_of_equal_stages_the_first_is_named_and_of_none_none():
    assert prediction(compile_pipeline(7, 3), Costs(forward=0.1)).breakdown.bottleneck == 0
    assert prediction(compile_pipeline(2, 2), Costs(forward=0)).breakdown.bottleneck is None


def test_the_bottleneck_of_several_stages_on_a_rank_is_on_the_rank_with_most_work():
    plan = compile_pipeline(8, 4, schedule="interleaved", ranks=2)
    found = prediction(plan, Costs(forward=(1.0, 3.0, 4.0, 2.5))).breakdown
    assert found.bottleneck == 1  # 5.5 on rank 1, though stage 2 of rank 0 takes longest
    assert [len(rank.stages) for rank in found.ranks] == [2, 2]


def test_recordings_are_broken_down_as_well(tmp_path):
    recording = read_recording(write_all(tmp_path, compile_pipeline(3, 2), runs=2))
    (pipeline,) = recording.pipelines
    one = recorded_breakdown(recording, pipeline, run=1)
    assert [rank.stages[0].forward for rank in one.ranks] == [3.0, 3.0]
    assert one.ranks[1].stages[0].receive == pytest.approx(1.25 + 2 * 0.25)
    both = recorded_breakdown(recording, pipeline)
    assert both.ranks[0].stages[0].forward == pytest.approx(6.0)
    assert both.ranks[0].idle == pytest.approx(both.seconds - 2 * one.seconds, abs=0.01)
    write(tmp_path / "none", 0, 1, [CLOSE])
    empty = read_recording(tmp_path / "none")
    assert recorded_breakdown(empty, next(iter(empty.pipelines))).bottleneck is None
