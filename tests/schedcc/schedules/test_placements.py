"""Schedules with several stages on a rank: their pictures, and what is derived from any picture."""

from itertools import combinations, pairwise, product

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedcc import ScheduleError, check, check_schedule, compile_pipeline
from schedcc.derive.repetition import derived, repetition
from schedcc.derive.transfers import slots
from schedcc.schedules import SCHEDULES, find_schedule
from schedcc.testing import execute, transport_models
from schemas import PipelinePlan


def shapes() -> st.SearchStrategy[tuple[str, int, int]]:
    """`(schedule, S, R)` of every shipped schedule."""
    ranks, held = st.integers(1, 4), st.integers(1, 3)
    return st.one_of(
        ranks.map(lambda r: ("inference", r, r)),
        st.tuples(ranks, held).map(lambda rv: ("interleaved", rv[0] * rv[1], rv[0])),
        ranks.map(lambda r: ("v_shape", 2 * r, r)),
    )


def picture(plan: PipelinePlan) -> list[list[str]]:
    """Of each rank and step, the stage and micro-batch that it forwards."""
    return [
        [
            next((f"{i.stage}:{i.micro_batch}" for i in step if i.op == "ForwardPass"), "")
            for step in program.steps
        ]
        for program in plan.programs
    ]


def test_interleaved_takes_its_laps_in_groups():
    assert picture(compile_pipeline(4, 4, schedule="interleaved", ranks=2)) == [
        ["0:0", "0:1", "2:0", "2:1", "0:2", "0:3", "2:2", "2:3", ""],
        ["", "1:0", "1:1", "3:0", "3:1", "1:2", "1:3", "3:2", "3:3"],
    ]


def test_the_v_shape_goes_there_and_back():
    assert picture(compile_pipeline(3, 4, schedule="v_shape", ranks=2)) == [
        ["0:0", "", "0:1", "3:0", "0:2", "3:1", "", "3:2"],
        ["", "1:0", "2:0", "1:1", "2:1", "1:2", "2:2", ""],
    ]


@pytest.mark.parametrize(("ranks", "held"), product(range(1, 5), range(1, 4)))
def test_interleaved_has_two_buffers_and_its_number_of_steps(ranks, held):
    for micro_batches in (ranks, 2 * ranks, 3 * ranks):
        plan = compile_pipeline(micro_batches, held * ranks, schedule="interleaved", ranks=ranks)
        assert len(plan.programs[0].steps) == held * micro_batches + ranks - 1
        assert plan.num_buffers <= 2


@pytest.mark.parametrize(("micro_batches", "ranks", "held"), product((1, 2, 3, 4), (2, 3), (1, 2)))
def test_no_schedule_without_waits_is_shorter_than_interleaved(micro_batches, ranks, held):
    plan = compile_pipeline(micro_batches, held * ranks, schedule="interleaved", ranks=ranks)
    steps = len(plan.programs[0].steps)
    shorter = combinations(range(steps - held * ranks), micro_batches)
    for enters in shorter:  # the steps in which micro-batches are on the first rank
        busy = [enter + lap * ranks for enter in enters for lap in range(held)]
        assert len(set(busy)) < len(busy), enters


def test_the_v_shape_reads_and_hands_out_everything_on_one_rank():
    plan = compile_pipeline(3, 6, schedule="v_shape", ranks=3)
    loads = {p.rank for p in plan.programs for step in p.steps for i in step if i.op[0] == "L"}
    assert loads == {0}
    assert [i.op for i in plan.programs[0].epilogue] == ["ReduceLoss", "BroadcastLoss"]
    assert [i.op for i in plan.programs[1].epilogue] == ["BroadcastLoss"]


@settings(max_examples=60, deadline=None)
@given(
    shape=shapes(),
    micro_batches=st.integers(1, 9),
    overlap=st.booleans(),
    model=transport_models(),
)
def test_what_is_derived_is_sound_and_executes(shape, micro_batches, overlap, model):
    schedule, stages, ranks = shape
    plan = compile_pipeline(micro_batches, stages, schedule=schedule, ranks=ranks, overlap=overlap)
    assert not check(plan, model).findings
    execute(plan, model)
    again = PipelinePlan.model_validate_json(plan.model_dump_json())
    assert again == plan


@settings(max_examples=40, deadline=None)
@given(shape=shapes(), micro_batches=st.integers(1, 60), overlap=st.booleans())
def test_a_long_program_is_the_short_one_with_its_period_put_in(shape, micro_batches, overlap):
    name, stages, ranks = shape
    sizes = (find_schedule(name), micro_batches, stages, ranks)
    expected, found = derived(*sizes, overlap=overlap), repetition(*sizes, overlap=overlap)
    if found is None:
        assert micro_batches < 12 * ranks
        return
    assert (found.micro_batches, found.steps) == (micro_batches, expected.steps)
    for rank in range(ranks):
        for column, like in zip(found.rows(rank).columns, expected.rows[rank].columns, strict=True):
            assert np.array_equal(column, like)


@settings(max_examples=30, deadline=None)
@given(shape=shapes(), micro_batches=st.integers(1, 40), overlap=st.booleans())
def test_the_verdict_on_a_schedule_is_that_on_its_plan(shape, micro_batches, overlap):
    schedule, stages, ranks = shape
    options = {"schedule": schedule, "ranks": ranks, "overlap": overlap}
    report = check_schedule(micro_batches, stages, **options)
    assert report == check(compile_pipeline(micro_batches, stages, **options))
    assert report.ok


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("schedule", ["inference", "interleaved", "v_shape"])
def test_a_schedule_of_a_billion_micro_batches_has_a_verdict(schedule, overlap):
    ranks = 8 if schedule == "inference" else 4
    assert check_schedule(10**9, 8, schedule=schedule, ranks=ranks, overlap=overlap).ok


@pytest.mark.parametrize(("ranks", "expected"), [(2, 2), (4, 2), (8, 2), (3, 3), (5, 3), (9, 3)])
def test_rings_need_two_or_three_slots(ranks, expected):
    source = np.arange(ranks)
    slot, count = slots(source, (source + 1) % ranks, np.zeros_like(source), ranks)
    assert count == expected
    assert all(slot[a] != slot[(a + 1) % ranks] for a in range(ranks))


def test_a_chain_has_the_parity_order():
    source = np.arange(7)
    slot, count = slots(source, source + 1, np.zeros_like(source), 8)
    assert (slot.tolist(), count) == ([0, 1, 0, 1, 0, 1, 0], 2)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), ranks=st.integers(2, 6))
def test_no_rank_has_two_transfers_in_a_slot(data, ranks):
    rank = st.integers(0, ranks - 1)
    edges = data.draw(
        st.sets(st.tuples(rank, rank, st.integers(0, 2)).filter(lambda e: e[0] != e[1]), min_size=1)
    )
    source, destination, step = np.array(sorted(edges)).T
    slot, count = slots(source, destination, step, ranks)
    assert slot.max() + 1 == count
    used = [
        (r, t, c)
        for s, d, t, c in zip(*(x.tolist() for x in (source, destination, step, slot)), strict=True)
        for r in (s, d)
    ]
    assert len(set(used)) == len(used)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), micro_batches=st.integers(1, 5), stages=st.integers(1, 5))
def test_any_picture_becomes_a_sound_plan(data, micro_batches, stages):
    """A random placement, and any order of forwards that the data allows."""
    ranks = data.draw(st.integers(1, stages))
    others = st.lists(st.integers(0, ranks - 1), min_size=stages - ranks, max_size=stages - ranks)
    placement = data.draw(st.permutations([*range(ranks), *data.draw(others)]))
    order = nx.DiGraph()
    order.add_nodes_from(product(range(stages), range(micro_batches)))
    order.add_edges_from(((s, m), (s + 1, m)) for s, m in order if s + 1 < stages)
    order.add_edges_from(((s, m), (s, m + 1)) for s, m in order if m + 1 < micro_batches)
    steps: dict[tuple[int, int], int] = {}
    busy: dict[int, int] = {}
    ready = [node for node in order if order.in_degree(node) == 0]
    while ready:
        node = ready.pop(data.draw(st.integers(0, len(ready) - 1)))
        free = busy.get(placement[node[0]], -1)
        steps[node] = 1 + max([free, *(steps[before] for before in order.predecessors(node))])
        busy[placement[node[0]]] = steps[node]
        for after in order.successors(node):
            if all(before in steps for before in order.predecessors(after)):
                ready.append(after)

    class Drawn:
        name = "drawn"

        def placement(self, *_):
            return placement

        def forwards(self, *_):
            return [(step, s, m) for (s, m), step in steps.items()]

    for overlap in (False, True):
        plan = compile_pipeline(
            micro_batches, stages, schedule=Drawn(), ranks=ranks, overlap=overlap
        )
        assert check(plan).ok
        assert plan.schedule == "drawn"
        execute(plan)


class Broken:
    """Two stages on two ranks, with something wrong."""

    name = "broken"

    def __init__(self, rows, placement=(0, 1)):
        self.rows, self.ranks = rows, placement

    def placement(self, *_):
        return self.ranks

    def forwards(self, *_):
        return self.rows


SOUND = [(0, 0, 0), (1, 0, 1), (1, 1, 0), (2, 1, 1)]


@pytest.mark.parametrize(
    ("schedule", "sentence"),
    [
        (
            "gpipe",
            "schedule is 'gpipe', needed one of 'inference', 'interleaved', 'interleaved_wide', "
            "'v_shape', or",
        ),
        (Broken, "schedule is the class Broken, needed a value: Broken()"),
        (7, "schedule is 7, needed a name or a value with 'name', 'placement' and 'forwards'"),
        (Broken(SOUND, (0, 0)), "the placement of 'broken' puts no stage on rank 1"),
        (Broken(SOUND, (0, 2)), "puts stage 1 on rank 2, needed 0 to 1"),
        (Broken(SOUND, (0,)), "the placement of 'broken' lists 1 stages, needed 2"),
        (Broken(SOUND, 3), "the placement of 'broken' is 3, needed a list of 2 ranks"),
        (Broken(SOUND[:-1]), "forwards micro-batch 1 on stage 1 0 times, needed once"),
        (Broken([*SOUND, (5, 0, 0)]), "forwards micro-batch 0 on stage 0 2 times, needed once"),
        (Broken([*SOUND, (5, 2, 0)]), "'broken' forwards stage 2, needed 0 to 1"),
        (Broken([*SOUND, (5, 0, 2)]), "'broken' forwards micro-batch 2, needed 0 to 1"),
        (Broken([(-1, 0, 0), *SOUND[1:]]), "forwards in step -1, needed 0 or later"),
        (Broken([(3, 0, 0), *SOUND[1:]]), "needed a step after 3, in which stage 0 does"),
        (
            Broken([(2, 0, 0), (1, 0, 1), (3, 1, 0), (4, 1, 1)]),
            "needed a step after 2, that of micro-batch 0",
        ),
        (Broken([(0, 0), (1, 1)]), "have the row (0, 0), needed (step, stage, micro_batch)"),
        (Broken([("0", 0, 0)]), "are no rows of integers (step, stage, micro_batch)"),
        (Broken([(10**30, 0, 0)]), "have a number beyond 64 bits"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused_in_one_sentence(schedule, sentence):
    with pytest.raises(ScheduleError) as raised:
        compile_pipeline(2, 2, schedule=schedule, ranks=2)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_two_forwards_of_a_rank_in_one_step_are_refused():
    schedule = Broken([(0, 0, 0), (1, 0, 1), (1, 1, 0), (2, 1, 1)], (0, 0))
    with pytest.raises(ScheduleError, match="has two forwards on rank 0 in step 1, needed one"):
        compile_pipeline(2, 2, schedule=schedule, ranks=1)


@pytest.mark.parametrize(
    ("schedule", "ranks", "sentence"),
    [
        ("inference", 2, "inference needs one stage on each rank, found 4 stages on 2 ranks"),
        ("interleaved", 3, "interleaved needs the same number of stages on each rank, found 4"),
        ("v_shape", None, "v_shape needs two stages on each rank, found 4 stages on 4 ranks"),
        ("interleaved", 5, "ranks is 5, needed at most one for each of 4 stages"),
        ("interleaved", 0, "ranks is 0, needed an integer of at least 1"),
    ],
)
def test_numbers_that_do_not_divide_are_refused(schedule, ranks, sentence):
    with pytest.raises(ScheduleError, match=sentence):
        compile_pipeline(4, 4, schedule=schedule, ranks=ranks)


def test_names_are_different():
    assert all(a.name != b.name for a, b in pairwise(sorted(SCHEDULES, key=lambda s: s.name)))
