"""Long and wide pipelines are stretched from a small one; they are what the passes make of them."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedcc import (
    ScheduleError,
    check_schedule,
    compile_epilogue,
    compile_pipeline,
    compile_stage,
    iter_steps,
)
from schedcc.passes import overlapped
from schedcc.testing.strategies import at_corners, outcomes, sizes
from schedcc.verify import verdict
from schemas import RankProgram, Step, TransportModel
from tests.support.inference_steps import inference_steps


def directly(micro_batches: int, stages: int, stage_id: int, *, overlap: bool) -> tuple[Step, ...]:
    """The steps without any stretching."""
    steps = tuple(inference_steps(micro_batches, stages, stage_id))
    program = RankProgram(rank=stage_id, steps=steps)
    header = compile_epilogue(stages)
    return overlapped(program, header).steps if overlap else steps


@pytest.mark.parametrize("overlap", [False, True])
def test_every_stage_of_every_size_is_what_the_passes_make(overlap):
    for micro_batches, stages in product((1, 2, 3, 9, 10, 11, 13, 24), (1, 2, 5, 6, 8, 9)):
        for stage_id in range(stages):
            size = (micro_batches, stages, stage_id)
            expected = directly(*size, overlap=overlap)
            assert compile_stage(*size, overlap=overlap).steps == expected, size


@settings(max_examples=40, deadline=None)
@given(size=sizes(40, 14), data=st.data(), overlap=st.booleans())
def test_any_stage_is_what_the_passes_make(size, data, overlap):
    stage_id = data.draw(st.integers(0, size[1] - 1))
    expected = directly(*size, stage_id, overlap=overlap)
    assert tuple(iter_steps(*size, stage_id, overlap=overlap)) == expected


def test_steps_come_one_by_one_however_many_there_are():
    steps = iter_steps(10**12, 8, 3, overlap=True)
    first = [next(steps) for _ in range(5000)]
    assert first == list(compile_stage(5100, 8, 3, overlap=True).steps[:5000])


def test_a_lazy_stage_is_refused_like_any_other_at_once():
    with pytest.raises(ScheduleError, match="stage_id is 3, needed an integer from 0 to 2"):
        iter_steps(4, 3, 3)


@at_corners(overlap=True, outcome=None, model=TransportModel())
@settings(max_examples=40, deadline=None)
@given(
    size=sizes(30, 9),
    overlap=st.booleans(),
    outcome=outcomes(),
    model=st.builds(
        TransportModel, queue=st.sampled_from(["stage", "channel"]), step_barrier=st.booleans()
    ),
)
def test_a_schedule_has_the_verdict_of_its_plan(size, overlap, outcome, model):
    plan = compile_pipeline(*size, overlap=overlap, outcome=outcome)
    report = check_schedule(*size, overlap=overlap, outcome=outcome, transport=model)
    assert report == verdict(plan, model, "networkx")
    assert report.ok


def test_a_schedule_of_millions_of_instructions_has_a_verdict():
    assert check_schedule(3000, 200).ok
    assert check_schedule(200, 300, overlap=True).ok
