"""The schedules side by side: the same layers on the same ranks, and which is the best."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedcc import Costs, ScheduleError, TransportModel, compile_pipeline, simulate
from schedcc.simulation.side_by_side import SideBySide, side_by_side


def of(table: SideBySide, name: str):
    (found,) = (figures for figures in table.schedules if figures.name == name)
    return found


def test_without_transfers_each_takes_what_its_formula_says():
    table = side_by_side(8, 4)
    assert of(table, "inference, blocking").makespan == 8 + 4 - 1
    assert of(table, "interleaved, blocking").makespan == (2 * 8 + 4 - 1) / 2
    assert of(table, "v_shape, blocking").makespan == (2 * 8 + 2 * 4 - 2) / 2
    assert table.best == "interleaved, blocking"


def test_where_transfers_take_long_the_fewest_cuts_are_best():
    table = side_by_side(8, 4, Costs(forward=1.0, transfer=5.0, activation_bytes=100))
    assert table.best.startswith("inference")


def test_of_equally_fast_ones_that_with_fewer_bytes_is_best():
    table = side_by_side(4, 1, Costs(activation_bytes=8))
    assert {figures.makespan for figures in table.schedules} == {4.0}
    assert table.best == "inference, blocking"


@settings(max_examples=25)
@given(
    micro_batches=st.integers(1, 8),
    ranks=st.integers(1, 4),
    held=st.integers(1, 3),
    transfer=st.sampled_from([0.0, 0.2, 1.0]),
    queue=st.sampled_from(["stage", "channel"]),
)
def test_figures_are_those_of_the_plans(micro_batches, ranks, held, transfer, queue):
    costs, transport = Costs(transfer=transfer, activation_bytes=3), TransportModel(queue=queue)
    table = side_by_side(micro_batches, ranks, costs, transport, held=held)
    assert len(table.schedules) == 8
    each = {"inference": 1, "interleaved": held, "interleaved_wide": held, "v_shape": 2}
    for figures in table.schedules:
        v = each[figures.schedule]
        assert figures.stages == v * ranks
        plan = compile_pipeline(
            micro_batches, v * ranks, schedule=figures.schedule, ranks=ranks,
            overlap="channel" if figures.overlap and queue == "channel" else figures.overlap,
        )  # fmt: skip
        own = costs.model_copy(update={"forward": 1.0 / v})
        timeline = simulate(plan, own, transport)
        assert (figures.makespan, figures.bubble) == (timeline.makespan, timeline.bubble)
        assert figures.peak_bytes == max(stage.peak_bytes for stage in timeline.stages)
        assert figures.buffers == v * plan.num_buffers
        hops = sum(a != b for a, b in zip(plan.placement, plan.placement[1:], strict=False))
        assert figures.messages == hops * micro_batches
    fastest = min(figures.makespan for figures in table.schedules)
    assert of(table, table.best).makespan == pytest.approx(fastest)


def test_where_transfers_take_a_while_wide_groups_hide_them():
    table = side_by_side(64, 4, Costs(transfer=0.1))
    assert table.best == "interleaved_wide, overlapped"
    assert of(table, table.best).makespan < of(table, "inference, overlapped").makespan
    assert (
        of(table, "interleaved, overlapped").makespan > of(table, "inference, overlapped").makespan
    )


def test_the_table_is_text_with_a_line_for_each_and_the_best():
    costs = Costs(transfer=0.2, activation_bytes=1024)
    assert str(side_by_side(8, 4, costs)).splitlines() == TABLE.strip("\n").splitlines()


TABLE = """
                              stages  steps  seconds  bubble  buffers of a rank  peak bytes  messages
inference, blocking                4     11     14.6   45.2%                  2        2048        24
inference, overlapped              4     11     11.6   31.0%                  2        4096        24
interleaved, blocking              8     19     16.3   50.9%                  4        2048        56
interleaved, overlapped            8     19     11.7   31.6%                  4        8192        56
interleaved_wide, blocking         8     19     16.3   50.9%                 16        6144        56
interleaved_wide, overlapped       8     19     10.1   20.8%                 16       17408        56
v_shape, blocking                  8     22     17.4   54.0%                  2        2048        48
v_shape, overlapped                8     22     14.2   43.7%                  2        4096        48
best: interleaved_wide, overlapped
"""  # noqa: E501 - as a terminal shows it


def test_the_value_survives_json():
    table = side_by_side(3, 2)
    assert SideBySide.model_validate_json(table.model_dump_json()) == table


def test_costs_of_each_stage_are_refused():
    with pytest.raises(ValueError, match=r"forward lists 2 costs, needed one number"):
        side_by_side(4, 2, Costs(forward=(1.0, 2.0)))


def test_a_schedule_that_does_not_exist_is_refused_in_its_own_words():
    class ThreeEach:
        name = "three_each"

        def placement(self, stages, ranks):
            raise ScheduleError(f"three_each needs 3 stages on each rank, found {stages}/{ranks}")

        def forwards(self, micro_batches, stages, ranks):  # noqa: ARG002
            return []

    with pytest.raises(ScheduleError, match="three_each needs 3 stages on each rank, found 4/2"):
        side_by_side(4, 2, schedules=[ThreeEach()])
