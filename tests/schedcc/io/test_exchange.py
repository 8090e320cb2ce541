"""Schedules of torch.distributed.pipelining as plans and back, without torch."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedcc import Outcome, PlanFileError, ScheduleError, UnsoundPlanError, check, compile_pipeline
from schedcc.io.exchange import from_torch_csv, read_torch_csv, to_torch_csv
from schedcc.io.exchange.buffers import with_buffers
from schedcc.testing.executor import execute
from schedcc.testing.plans import pipeline, words
from schedcc.testing.strategies import at_corners, sizes
from schemas import PipelinePlan

BLOCKING = """\
0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1
1RECV_F0,1F0,1RECV_F1,1SEND_F0,1F1,1SEND_F1,1RECV_B0,1B0,1SEND_B0,1RECV_B1,1B1,1SEND_B1
2RECV_F0,2F0,2RECV_F1,2F1,2B0,2SEND_B0,2B1,2SEND_B1
"""


def test_a_plan_is_written_as_forwards_and_transfers_with_the_backwards_that_the_loader_wants():
    assert to_torch_csv(compile_pipeline(2, 3)) == BLOCKING


def test_posted_transfers_are_written_where_they_are_posted():
    text = to_torch_csv(compile_pipeline(3, 3, overlap=True))
    forwards = [row.split("RECV_B")[0] for row in text.splitlines()]
    assert forwards[1] == "1RECV_F0,1RECV_F1,1F0,1SEND_F0,1RECV_F2,1F1,1SEND_F1,1F2,1SEND_F2,1"


def test_a_single_stage_has_no_transfers():
    assert to_torch_csv(compile_pipeline(2, 1)) == "0F0,0F1,0B0,0B1\n"


def test_an_unsound_plan_is_not_written():
    with pytest.raises(UnsoundPlanError, match="output of micro-batch 0 never sent"):
        to_torch_csv(pipeline("L0 F0", "R0 L0 F0"))


def drawn(plan: PipelinePlan) -> list[list[str]]:
    return [[words(step) for step in program.steps] for program in plan.programs]


def test_a_receive_is_waited_for_by_its_forward_and_a_send_at_the_end():
    plan = from_torch_csv(BLOCKING)
    assert drawn(plan) == [
        ["L0 F0 s>0", "L1 F1 s>1 s.1 s.0"],
        ["", "r<0 r.0 F0", "r<1 s>0 r.1 F1 s>1 s.1 s.0"],
        ["", "", "r<0 L0 r.0 F0", "r<1 L1 r.1 F1"],
    ]
    assert (plan.micro_batches, plan.stages, plan.num_buffers) == (2, 3, 2)
    assert plan.schedule == "torch"


def test_transfers_that_a_file_does_not_name_are_added():
    assert drawn(from_torch_csv("0F0,0F1\n1F0,1F1\n")) == [
        ["L0 F0 s>0", "L1 F1 s>1 s.1 s.0"],
        ["", "r<0 L0 r.0 F0", "r<1 L1 r.1 F1"],
    ]


def test_bubbles_backwards_and_what_belongs_to_sharding_are_left_out():
    bare = from_torch_csv("0F0,0F1\n1F0,1F1\n")
    spaced = "0UNSHARD,0F0,, 0F1,,0B0,0B1,0REDUCE_GRAD,0RESHARD\n,1F0,1F1,1I0,1W0,1B1\n"
    assert from_torch_csv(spaced) == bare


def test_an_overlapped_forward_and_backward_are_two_actions():
    text = "0F0,0F1,0B0,0B1\n1F0,(1F1;1B0)OVERLAP_F_B,1B1\n"
    assert drawn(from_torch_csv(text))[1] == ["", "r<0 L0 r.0 F0", "r<1 L1 r.1 F1"]


def test_the_order_of_the_rows_does_not_matter_when_transfers_are_named():
    first, *others = BLOCKING.splitlines()
    assert from_torch_csv("\n".join([*others, first])) == from_torch_csv(BLOCKING)


def test_a_file_may_be_short_of_the_micro_batches_that_it_should_have():
    plan = from_torch_csv("0F0\n", micro_batches=2)
    assert [f.message for f in check(plan).findings] == ["micro-batch 1 never forwarded"]
    with pytest.raises(ScheduleError, match="micro_batches is 0, needed an integer of at least 1"):
        from_torch_csv("0F0\n", micro_batches=0)


@at_corners(overlap=True)
@at_corners(overlap=False)
@settings(max_examples=40)
@given(size=sizes(8, 6), overlap=st.booleans())
def test_what_is_written_is_read_as_a_sound_plan_and_written_the_same(size, overlap):
    text = to_torch_csv(
        compile_pipeline(*size, overlap=overlap, outcome=Outcome(return_logits=True))
    )
    plan = from_torch_csv(text)
    assert check(plan).findings == ()
    execute(plan)
    assert to_torch_csv(plan) == text
    assert (plan.micro_batches, plan.stages) == size
    # All outputs of a stage are kept until its sends are waited for; a single stage sends nothing.
    assert plan.num_buffers == (size[0] if size[1] > 1 else 1)


@at_corners(overlap=True)
@settings(max_examples=40)
@given(size=sizes(8, 6), overlap=st.booleans())
def test_buffers_given_anew_are_as_many_as_micro_batches_alive(size, overlap):
    plan = compile_pipeline(*size, overlap=overlap)
    for program in plan.programs:
        renumbered, count = with_buffers(program)
        alive: set[int] = set()
        most = 0
        everything = [i for step in program.steps for i in step]
        for number, instruction in enumerate(everything):
            alive.add(instruction.micro_batch)
            most = max(most, len(alive))
            if all(instruction.micro_batch != i.micro_batch for i in everything[number + 1 :]):
                alive.discard(instruction.micro_batch)
        assert count == max(most, 1)
        header = plan.stage(program.rank)
        again = header.model_copy(update={"steps": renumbered.steps, "num_buffers": count})
        assert check(again).findings == ()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "found 0 rows, needed 1 to 1024, one for a rank"),
        ("0F0\n" * 1025, "found 1025 rows, needed 1 to 1024, one for a rank"),
        ("hello", "row 1, cell 1 is 'hello', needed an action such as 2F0 or 1SEND_F3"),
        ("0F0,F1", "row 1, cell 2 is 'F1', needed an action such as 2F0 or 1SEND_F3"),
        ("0F0,0F1O", "row 1, cell 2 is '0F1O', needed an action such as 2F0 or 1SEND_F3"),
        ("0F0\n1F-1", "row 2, cell 1 is '1F-1', needed an action such as 2F0 or 1SEND_F3"),
        ("0F" + "9" * 50, f"row 1, cell 1 is '0F{'9' * 35}...', needed an action such as 2F0 or"),
        ("0F٣", "row 1, cell 1 is '0F٣', needed an action such as 2F0 or 1SEND_F3"),
        ("0F0,0F", "row 1, cell 2 is '0F', needed its micro-batch, such as 0F0"),
        ("(0F0;1B)OVERLAP_F_B", "row 1, cell 1 is '1B', needed its micro-batch, such as 1B0"),
        ("0F0\n\n1F0", "row 2 is empty, needed the actions of its stages"),
        ("0F0\n,,\n", "row 2 is empty, needed the actions of its stages"),
        ("0F0\n0F1", "row 2 is the second row of stage 0, needed one"),
        ("0F0\n5F0", "row 2 is of stage 5, needed the stages 0 to 1 (as many as are named)"),
        ("0B0", "found 1 actions and no forward, needed one, such as 0F0"),
        (
            "0F0\n1F1",
            "row 2, cell 1 is 1F1, which waits for stage 0 and micro-batch 1, needed an order in "
            "which that comes before",
        ),
        (
            "0B0,0F0\n1F0,1B0",
            "row 1, cell 1 is 0B0, which waits for stage 1 and micro-batch 0, needed an order in "
            "which that comes before",
        ),
        ('"' + "0" * 200_000, "not CSV: field larger than field limit (131072)"),
    ],
)
def test_what_is_no_schedule_is_refused_with_row_and_cell(text, complaint):
    with pytest.raises(PlanFileError) as raised:
        from_torch_csv(text)
    assert str(raised.value).startswith(complaint)
    assert str(raised.value).isprintable()


def test_transfers_in_a_file_that_is_said_to_have_none_are_refused():
    with pytest.raises(PlanFileError, match="row 1, cell 2 is 0SEND_F0, needed only compute act"):
        from_torch_csv(BLOCKING, form="compute_only")


def test_a_file_that_is_said_to_name_its_transfers_gets_none_added():
    plan = from_torch_csv("0F0\n1F0\n", form="compute_comms")
    assert drawn(plan) == [["L0 F0"], ["", "L0 F0"]]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for content, complaint in (
        (None, "cannot be read: No such file or directory"),
        (b"\xff", "not UTF-8 text: invalid start byte"),
        (b"x", "not a schedule: row 1, cell 1 is 'x', needed an action such as 2F0 or 1SEND_F3"),
    ):
        file = tmp_path / "schedule.csv"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(PlanFileError) as raised:
            read_torch_csv(file)
        assert str(raised.value) == f"{file}: {complaint}"


def test_a_plan_is_exported_and_imported_on_the_command_line(run, tmp_path):
    file, plan = tmp_path / "plan.csv", tmp_path / "plan.json"
    assert run("export", "-M", 2, "-S", 3, "-o", file) == (0, "", "")
    assert file.read_text() == BLOCKING == run("export", "-M", 2, "-S", 3).out
    assert run("import", file, "-o", plan) == (0, "", "")
    assert PipelinePlan.model_validate_json(plan.read_text()) == from_torch_csv(BLOCKING)
    assert run("export", plan).out == BLOCKING
    assert run("check", file).status == run("check", plan).status == 0
    assert run("import", file, "-M", 3, "-o", plan).status == 0
    assert run("check", plan).status == 1


def test_the_plan_of_one_stage_is_not_exported(run, tmp_path):
    file = tmp_path / "stage.json"
    run("compile", "-M", 2, "-S", 2, "--stage-id", 1, "-o", file)
    complaint = f"schedcc: {file}: the plan of stage 1 alone, needed all stages\n"
    assert run("export", file) == (2, "", complaint)


def test_a_file_that_cannot_be_written_is_an_error_of_one_line(run, tmp_path):
    complaint = f"schedcc: {tmp_path}: cannot be written: Is a directory\n"
    assert run("export", "-M", 2, "-S", 2, "-o", tmp_path) == (2, "", complaint)


def test_a_row_may_have_several_stages():
    plan = from_torch_csv("0F0,0F1,2F0,2F1\n,1F0,1F1,3F0,3F1\n")
    assert (plan.stages, plan.ranks, plan.placement) == (4, 2, (0, 1, 0, 1))
    assert check(plan).ok
    assert [i.stage for step in plan.programs[0].steps for i in step if i.op == "ForwardPass"] == [
        0,
        0,
        2,
        2,
    ]


def test_stages_of_one_rank_hand_over_without_a_transfer():
    plan = from_torch_csv("0F0,0F1,3F0,3F1\n,1F0,2F0,1F1,2F1\n")
    copies = [i for p in plan.programs for step in p.steps for i in step if i.op[0] == "C"]
    assert [(i.peer, i.stage, i.micro_batch) for i in copies] == [(1, 2, 0), (1, 2, 1)]
    assert check(plan).ok


@pytest.mark.parametrize(("schedule", "stages"), [("interleaved", 6), ("v_shape", 4)])
@pytest.mark.parametrize("overlap", [False, True])
def test_what_is_exported_with_several_stages_is_read_back(schedule, stages, overlap):
    plan = compile_pipeline(5, stages, schedule=schedule, ranks=2, overlap=overlap)
    again = from_torch_csv(to_torch_csv(plan))
    assert again.placement == plan.placement
    assert check(again).ok
    assert to_torch_csv(again) == to_torch_csv(plan)


def test_a_row_that_is_misnumbered_is_blamed_and_not_those_that_wait_for_it():
    """As torch 2.13 writes 1F1B: on the last rank, forwards count from 1."""
    rows = ["0F0,0F1,0B0,0B1", "1F1,1B0,1F2,1B1"]
    with pytest.raises(PlanFileError) as raised:
        from_torch_csv("\n".join(rows))
    assert str(raised.value) == (
        "row 2, cell 3 is 1F2, which waits for stage 0 and micro-batch 2, needed an order in which "
        "that comes before"
    )


def test_a_misnumbered_row_is_blamed_where_ranks_hold_several_stages():
    with pytest.raises(PlanFileError, match="row 2, cell 1 is 1F5, which waits for stage 0 and"):
        from_torch_csv("0F0,2F0\n1F5,1F0,3F0\n")
