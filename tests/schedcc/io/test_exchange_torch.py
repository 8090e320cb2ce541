"""What torch.distributed.pipelining makes of the files that are written and read here."""

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.pipelining.schedules import ScheduleGPipe

from schedcc import PlanFileError, check, compile_pipeline
from schedcc.io.exchange import from_torch_csv, to_torch_csv
from schedcc.testing.strategies import at_corners, sizes
from schemas import Direction, PipelinePlan, TransferInstruction
from schemas.instruction_set.effects import Phase
from tests.support.forks import launch_forks
from tests.support.models_for_tests import batches, mlp, one_process, over_stages
from tests.support.paths import ROOT
from tests.support.torch_schedules import Files, forward_actions, loaded, run_files, simulates

EXAMPLES = ROOT / "examples" / "torch_csv"


def actions(plan: PipelinePlan) -> dict[int, list[str]]:
    """A plan's forwards and posts in torch's words, by stage."""
    found: dict[int, list[str]] = {}
    for program in plan.programs:
        row = found.setdefault(program.rank, [])
        for instruction in (i for step in program.steps for i in step):
            if isinstance(instruction, TransferInstruction):
                name = "SEND_F" if instruction.direction is Direction.SEND else "RECV_F"
                if instruction.effects.phase is not Phase.WAIT:
                    row.append(f"{program.rank}{name}{instruction.micro_batch}")
            elif instruction.op == "ForwardPass":
                row.append(f"{program.rank}F{instruction.micro_batch}")
    return found


@at_corners(overlap=True)
@at_corners(overlap=False)
@settings(max_examples=25)
@given(size=sizes(8, 6), overlap=st.booleans())
def test_torch_loads_and_simulates_what_is_exported(size, overlap, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "exported.csv"
    plan = compile_pipeline(*size, overlap=overlap)
    file.write_text(to_torch_csv(plan))
    schedule = loaded(file, stages=size[1], micro_batches=size[0])
    assert simulates(schedule)
    assert forward_actions(schedule) == actions(plan)


def gpipe(micro_batches: int, stages: int) -> list[list[str]]:
    """The compute actions of torch's own GPipe schedule, with its bubbles as empty cells."""
    header = SimpleNamespace(_num_stages=stages, _n_microbatches=micro_batches)
    order = ScheduleGPipe._get_pipeline_order(header)
    return [
        ["" if a is None else str(a) for a in row if a is None or a.is_compute_op]
        for row in order.values()
    ]


def write(file: Path, rows: list[list[str]]) -> str:
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows(rows)
    return file.read_text()


@pytest.mark.parametrize("size", [(1, 1), (4, 1), (1, 4), (2, 3), (8, 3)], ids=str)
def test_torchs_gpipe_schedule_is_read_as_torch_lowers_it_and_is_sound(size, tmp_path):
    text = write(tmp_path / "own.csv", gpipe(*size))
    plan = from_torch_csv(text)
    schedule = loaded(tmp_path / "own.csv", size[1], size[0], form="compute_only")
    assert actions(plan) == forward_actions(schedule)
    assert check(plan).findings == ()
    schedule._dump_csv(str(tmp_path / "lowered.csv"), format="compute_comms")
    assert from_torch_csv((tmp_path / "lowered.csv").read_text()) == plan


@settings(max_examples=60)
@given(data=st.data(), size=sizes(4, 4))
def test_any_order_of_forwards_and_backwards_gets_the_transfers_that_torch_gives_it(
    data, size, tmp_path_factory
):
    micro_batches, stages = size
    rows = []
    for stage in range(stages):
        forwards = data.draw(st.permutations(range(micro_batches)))
        row = [f"{stage}F{m}" for m in forwards]
        for m in data.draw(st.permutations(range(micro_batches))):
            at = data.draw(st.integers(row.index(f"{stage}F{m}") + 1, len(row)))
            row.insert(at, f"{stage}B{m}")
        rows.append(row)
    file = tmp_path_factory.getbasetemp() / "any.csv"
    text = write(file, rows)
    try:
        schedule = loaded(file, stages, micro_batches, form="compute_only")
    except AssertionError as error:
        if "can't schedule sends/recvs" not in str(error):
            raise
        with pytest.raises(PlanFileError, match="which waits for stage"):
            from_torch_csv(text)
    else:
        assert actions(from_torch_csv(text)) == forward_actions(schedule)


REJECTED = {
    "swapped_receives": ("channel", True),
    "missing_receive": ("channel", False),
    "missing_send": ("channel", False),
    "send_before_forward": ("buffer", False),
    "second_send": ("channel", True),
    "repeated_send": ("channel", True),
    "swapped_forwards": ("coverage", True),
    "repeated_forward": ("coverage", True),
}
"""The finding that each file must have, and whether torch's own simulation accepts it, too."""


@pytest.mark.parametrize("name", REJECTED)
def test_torch_loads_what_check_rejects(name, run):
    code, simulated = REJECTED[name]
    file = EXAMPLES / f"{name}.csv"
    assert simulates(loaded(file, stages=2, micro_batches=3)) == simulated
    done = run("check", file)
    assert done.status == 1
    assert code in [line.split(":")[0] for line in done.out.splitlines()]


def test_torch_passes_over_a_slip_of_the_pen_that_check_refuses(run):
    file = EXAMPLES / "mistyped.csv"
    assert forward_actions(loaded(file, 2, 3))[1][-1] == "1F2"
    complaint = "row 2, cell 6 is '1F2O', needed an action such as 2F0 or 1SEND_F3"
    assert run("check", file) == (2, "", f"schedcc: {file}: not a schedule: {complaint}\n")


def test_the_sound_example_is_sound_and_no_example_is_forgotten(run):
    assert run("check", EXAMPLES / "sound.csv").status == 0
    names = {file.stem for file in EXAMPLES.glob("*.csv")}
    assert names == {*REJECTED, "mistyped", "ring", "sound"}


def test_torch_loads_and_simulates_a_ring_in_which_each_rank_waits_for_the_other(run):
    file = EXAMPLES / "ring.csv"
    assert simulates(loaded(file, stages=4, micro_batches=2, ranks=2))
    done = run("check", file)
    assert done.status == 1
    assert "deadlock: ranks 0 and 1 wait for each other" in done.out
    # Not where every channel has a queue of its own, or room for a message.
    for transport in (["--queue", "channel"], ["--buffered-sends", 1]):
        assert run("check", file, *transport).status == 0


def test_torch_runs_exported_plans_with_the_losses_of_the_evaluator(tmp_path):
    sizes = (2, 2, 2, 2)
    paths = []
    for overlap in (False, True):
        paths.append(str(tmp_path / f"{overlap}.csv"))
        Path(paths[-1]).write_text(to_torch_csv(compile_pipeline(4, 3, overlap=overlap)))
    ours = over_stages(
        3,
        lambda evaluator: evaluator.eval_batch(
            iter(batches(sizes)), return_logits=True, num_micro_batches=4
        ),
    )[-1]
    outcomes = launch_forks(3, run_files, Files(tuple(paths), sizes))
    assert [outcome.losses for outcome in outcomes] == [list(ours.losses)] * 2
    logits = [row for chunk in ours.logits for row in chunk.tolist()]
    assert [outcome.logits.tolist() for outcome in outcomes] == [logits] * 2


SEVERAL_STAGES = [
    ("interleaved", 4, False),
    ("interleaved", 4, True),
    ("interleaved", 6, True),
    ("v_shape", 4, True),
]


@pytest.fixture(scope="module")
def run_by_torch(tmp_path_factory):
    """What torch's runtime makes of files for two ranks, all in the same two processes."""
    directory = tmp_path_factory.mktemp("files")
    files = {name: EXAMPLES / f"{name}.csv" for name in ("sound", "swapped_receives")}
    files["swapped_forwards"] = EXAMPLES / "swapped_forwards.csv"
    for schedule, stages, overlap in SEVERAL_STAGES:
        plan = compile_pipeline(3, stages, schedule=schedule, ranks=2, overlap=overlap)
        file = directory / f"{schedule}{stages}{overlap}.csv"
        file.write_text(to_torch_csv(plan))
        files[file.stem] = file
    outcomes = launch_forks(2, run_files, Files(tuple(map(str, files.values())), (2, 2, 2)))
    return dict(zip(files, outcomes, strict=True))


def test_torch_runs_swapped_micro_batches_without_complaint(run_by_torch):
    names = ("sound", "swapped_receives", "swapped_forwards")
    sound, receives, forwards = (run_by_torch[name] for name in names)
    assert sound.losses == one_process(mlp(), batches((2, 2, 2)))[1]
    # Inputs of one micro-batch met labels of another; losses came in another order than asked.
    assert receives.losses[:2] != sound.losses[:2]
    assert sorted(receives.losses) != sorted(sound.losses)
    assert receives.logits.tolist() != sound.logits.tolist()
    assert forwards.losses == [sound.losses[1], sound.losses[0], sound.losses[2]]


@pytest.mark.parametrize(("schedule", "stages", "overlap"), SEVERAL_STAGES)
def test_torch_runs_exported_schedules_with_several_stages_on_a_rank(
    schedule, stages, overlap, run_by_torch
):
    logits, losses = one_process(mlp(), batches((2, 2, 2)))
    found = run_by_torch[f"{schedule}{stages}{overlap}"]
    assert found.losses == losses
    assert found.logits.tolist() == [row for chunk in logits for row in chunk.tolist()]
