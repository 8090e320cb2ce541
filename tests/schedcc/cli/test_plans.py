"""The command line of the compiler: what it prints, writes and returns."""

import json

import pytest

import schedcc
from schedcc.testing.plans import pipeline
from schemas import PipelinePlan, Report, StagePlan
from tests.support.command_line import module
from tests.support.plans import sends_first


def test_the_module_is_a_program():
    done = module("compile", "-M", "2", "-S", "2")
    assert PipelinePlan.model_validate_json(done.stdout) == schedcc.compile_pipeline(2, 2)
    assert (done.returncode, done.stderr) == (0, "")


def test_errors_of_the_module_are_one_line_and_status_2():
    done = module("compile", "-M", "0", "-S", "2")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "schedcc: micro_batches is 0, needed an integer of at least 1\n"


def test_compile_writes_one_line_of_json(run):
    done = run("compile", "-M", 3, "-S", 2)
    assert (done.status, done.err, done.out.count("\n")) == (0, "", 1)
    assert PipelinePlan.model_validate_json(done.out) == schedcc.compile_pipeline(3, 2)


def test_compile_writes_the_plan_of_one_stage(run):
    done = run("compile", "--micro-batches", 3, "--stages", 2, "--stage-id", 1)
    assert StagePlan.model_validate_json(done.out) == schedcc.compile_stage(3, 2, 1)


def test_compile_writes_a_file_that_check_finds_sound(run, tmp_path):
    file = tmp_path / "plan.json"
    assert run("compile", "-M", 3, "-S", 2, "-o", file) == (0, "", "")
    checks = (
        "placement, structure, coverage, buffers, splits, ranks, channels, collectives, "
        "deadlock, latency; "
    )
    checks += "one queue per stage, rendezvous"
    assert run("check", file) == (0, f"{file}: sound ({checks})\n", "")


def test_check_says_what_one_stage_alone_cannot_tell(run, tmp_path):
    file = tmp_path / "stage.json"
    assert run("compile", "-M", 3, "-S", 2, "--stage-id", 1, "--output", file).status == 0
    alone = "stage 1 alone, not its transfers with the others"
    sound = f"{file}: sound (placement, structure, coverage, buffers, splits; {alone})\n"
    assert run("check", file) == (0, sound, "")


def test_check_lists_every_finding_and_returns_1(run, unsound):
    done = run("check", unsound)
    *findings, verdict = done.out.splitlines()
    assert (done.status, done.err) == (1, "")
    assert findings == [
        "coverage: stage 0: output of micro-batch 0 never sent, needed once",
        "buffer: stage 0: the output of buffer 0 still holds micro-batch 0 at the end, "
        "which nothing has read",
        "channel: stage 1, step 0: channel 0->1: micro-batch 0 is received once more than sent: "
        "RecvActivation(micro_batch=0) waits for a send that never comes",
    ]
    assert verdict.startswith(f"{unsound}: 3 findings (placement, structure, coverage,")


def test_check_prints_the_report_as_json(run, unsound):
    done = run("check", unsound, "--json")
    assert done.status == 1
    assert json.loads(done.out)["ok"] is False
    plan = PipelinePlan.model_validate_json(unsound.read_text())
    assert Report.model_validate_json(done.out) == schedcc.check(plan)


def test_show_draws_the_grid_of_steps_and_stages(run):
    done = run("show", "-M", 4, "-S", 3)
    assert (done.status, done.err) == (0, "")
    assert [line.rstrip() for line in done.out.splitlines()] == [
        "inference schedule: M = 4 micro-batches, S = 3 stages, 2 buffers, 6 steps",
        "╭──────┬───────┬──────────┬──────────┬──────────┬──────────┬─────────╮",
        "│stage │ 0     │ 1        │ 2        │ 3        │ 4        │ 5       │",
        "├──────┼───────┼──────────┼──────────┼──────────┼──────────┼─────────┤",
        "│    0 │ L0 F0 │ L1 S0 F1 │ L2 S1 F2 │ L3 S2 F3 │ S3       │         │",
        "│    1 │       │ R0 F0    │ R1 S0 F1 │ R2 S1 F2 │ R3 S2 F3 │ S3      │",
        "│    2 │       │          │ L0 R0 F0 │ L1 R1 F1 │ L2 R2 F2 │ L3 R3 F3│",
        "╰──────┴───────┴──────────┴──────────┴──────────┴──────────┴─────────╯",
        "epilogue of stage 0: BroadcastLoss(source=2)",
        "epilogue of stage 1: BroadcastLoss(source=2)",
        "epilogue of stage 2: ReduceLoss(reduction='avg'), BroadcastLoss(source=2)",
        "L LoadMicroBatch   F ForwardPass   R RecvActivation   S SendActivation",
    ]


def test_show_draws_split_transfers_and_programs_of_any_length(run, tmp_path):
    file = tmp_path / "plan.json"
    file.write_text(pipeline("L0 F0 s>0 | s.0", "r<0 r.0 L0 F0").model_dump_json())
    title, *grid, legend = run("show", file).out.split("\n", 7)
    assert title == "inference schedule: M = 1 micro-batches, S = 2 stages, 2 buffers, 2 steps"
    assert grid == [
        "╭──────┬───────────────┬────╮",
        "│stage │ 0             │ 1  │",
        "├──────┼───────────────┼────┤",
        "│    0 │ L0 F0 s>0     │ s.0│",
        "│    1 │ r<0 r.0 L0 F0 │    │",
        "╰──────┴───────────────┴────╯",
    ]
    posts = (
        "r< PostRecvActivation r. WaitRecvActivation s> PostSendActivation s. WaitSendActivation"
    )
    assert " ".join(legend.split()) == f"L LoadMicroBatch F ForwardPass {posts}"


def test_show_draws_the_steps_that_fit_and_says_so(run):
    lines = run("show", "-M", 100, "-S", 2).out.splitlines()
    assert lines[0].endswith("101 steps (drawn: 0 to 7)")
    assert all(len(line) <= 100 for line in lines)


@pytest.mark.parametrize(
    ("steps", "drawn", "columns"),
    [
        ("2:4", "2 to 3", ["2", "3"]),
        ("8:", "8 to 9", ["8", "9"]),
        ("-1:", "9 to 9", ["9"]),
    ],
)
def test_show_draws_the_steps_asked_for(run, steps, drawn, columns):
    title, _, header, *_ = run("show", "-M", 9, "-S", 2, f"--steps={steps}").out.splitlines()
    assert title.endswith(f"10 steps (drawn: {drawn})")
    assert header.replace("│", " ").split() == ["stage", *columns]


@pytest.mark.parametrize("steps", ["9:3", "77:", "5:5"])
def test_a_range_without_steps_is_one_line_and_status_2(run, steps):
    complaint = f"--steps is {steps!r}, needed a range within 0:10 that has steps"
    assert run("show", "-M", 9, "-S", 2, f"--steps={steps}") == (2, "", f"schedcc: {complaint}\n")


def test_the_legend_fits_the_width(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = run("show", "-M", 9, "-S", 2, "--overlap").out
    legend = out[out.index("L LoadMicroBatch") :].splitlines()
    assert len(legend) == 2
    assert max(len(line.rstrip()) for line in legend) <= 80


def test_show_draws_wide_grids_without_folding_them(run):
    lines = run("show", "-M", 40, "-S", 1, "--steps", ":").out.splitlines()
    assert lines[0].endswith("40 steps")
    assert lines[4].startswith("│    0 │ L0 F0 │ L1 F1 │")
    assert lines[4].endswith("│ L39 F39│")


def test_show_draws_one_stage(run):
    lines = run("show", "-M", 1, "-S", 2, "--stage-id", 1).out.splitlines()
    assert lines[4:6] == ["│    1 │   │ L0 R0 F0│", "╰──────┴───┴─────────╯"]


def test_text_of_a_plan_is_not_markup(run, tmp_path):
    file = tmp_path / "plan.json"
    plan = schedcc.compile_pipeline(1, 1).model_copy(update={"schedule": "[/x] [red]a :smile:"})
    file.write_text(plan.model_dump_json())
    done = run("show", file)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("[/x] [red]a :smile: schedule: M = 1 micro-batches, S = 1 stages")


def test_a_plan_without_programs_can_be_drawn(run, tmp_path):
    file = tmp_path / "plan.json"
    file.write_text(PipelinePlan(micro_batches=1, stages=1, programs=()).model_dump_json())
    assert run("show", file).out.startswith("inference schedule: M = 1 micro-batches, S = 1 stages")


COUNT = "needed an integer of at least 1"
NUMBERS = "the numbers of micro-batches and stages, such as -M 8 -S 4"


@pytest.mark.parametrize("command", ["compile", "compare"])
def test_a_plan_of_no_size_is_one_line_and_status_2(run, command):
    assert run(command) == (2, "", f"schedcc: needed {NUMBERS}\n")


@pytest.mark.parametrize("command", ["check", "show", "simulate", "export", "trace"])
def test_a_command_without_a_plan_says_that_it_takes_a_file(run, command):
    assert run(command) == (2, "", f"schedcc: needed a plan file, or {NUMBERS}\n")


@pytest.mark.parametrize("command", ["compile", "show"])
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("-M 0 -S 2", f"micro_batches is 0, {COUNT}"),
        ("-M -3 -S 2", f"micro_batches is -3, {COUNT}"),
        ("-M 2 -S 0", f"stages is 0, {COUNT}"),
        (
            "-M 2 -S 3 --stage-id 3",
            "stage_id is 3, needed an integer from 0 to 2 (stages=3)",
        ),
        ("-M 2 -S 1 --stage-id -1", "stage_id is -1, needed 0 (stages=1)"),
        ("-M 2", f"needed {NUMBERS}"),
    ],
)
def test_a_pipeline_that_cannot_exist_is_one_line_and_status_2(run, command, arguments, complaint):
    assert run(command, *arguments.split()) == (2, "", f"schedcc: {complaint}\n")


@pytest.mark.parametrize("steps", ["3", "a:b", "1:2:3", ""])
def test_steps_that_are_no_range_are_one_line_and_status_2(run, steps):
    complaint = f"--steps is {steps!r}, needed A:B, such as 0:8 or 10:"
    assert run("show", "-M", 2, "-S", 2, "--steps", steps) == (2, "", f"schedcc: {complaint}\n")


@pytest.mark.parametrize("command", ["check", "show"])
def test_what_is_no_plan_is_one_line_and_status_2(run, tmp_path, command):
    file = tmp_path / "none.json"
    missing = f"schedcc: {file}: cannot be read: No such file or directory\n"
    assert run(command, file) == (2, "", missing)
    file.write_text('{"format": "schedcc.plan/1", "micro_batches": true}')
    refused = f"schedcc: {file}: not a plan: micro_batches is True, needed a valid integer (2 more)"
    assert run(command, file) == (2, "", f"{refused}\n")


def test_show_takes_a_file_or_numbers(run, unsound):
    complaint = "schedcc: needed a plan file or -M and -S, not both\n"
    assert run("show", unsound, "-M", 2) == (2, "", complaint)


@pytest.mark.parametrize(
    ("name", "reason"), [("", "Is a directory"), ("no/plan", "No such file or directory")]
)
def test_a_plan_that_cannot_be_written_is_one_line_and_status_2(run, tmp_path, name, reason):
    file = tmp_path / name
    complaint = f"schedcc: {file}: cannot be written: {reason}\n"
    assert run("compile", "-M", 2, "-S", 2, "-o", file) == (2, "", complaint)


@pytest.mark.parametrize("arguments", [["compile", "-M", "x"], ["draw"], ["--no"]])
def test_a_wrong_use_is_explained_with_status_2(run, arguments):
    done = run(*arguments)
    assert (done.status, done.out) == (2, "")
    assert "Usage: " in done.err
    assert "Traceback" not in done.err


def test_the_version_is_that_of_the_package(run):
    assert run("--version") == (0, f"{schedcc.__version__}\n", "")


def test_check_takes_the_compilers_own_plans_of_any_size(run):
    done = run("check", "-M", 5000, "-S", 40, "--overlap")
    assert done.status == 0
    assert done.out.startswith("M = 5000, S = 40: sound (placement, structure, ")
    both = run("check", "plan.json", "-M", 5)
    assert both == (2, "", "schedcc: needed a plan file or -M and -S, not both\n")


def test_a_plan_that_needs_no_barriers_may_be_stuck_with_them(run, tmp_path):
    lazy = tmp_path / "lazy.json"
    lazy.write_text(pipeline("L0 F0 S0 |", "| L0 R0 F0").model_dump_json())
    assert run("check", lazy).status == 0
    done = run("check", lazy, "--step-barrier")
    assert done.status == 1
    assert "waits for  the barrier after step 0" in done.out
    assert done.out.endswith("rendezvous, a barrier between steps)\n")


def test_a_warning_is_shown_as_one_and_leaves_the_status_0(run, tmp_path):
    file = tmp_path / "slow.json"
    file.write_text(sends_first(6, 5).model_dump_json())
    done = run("check", file)
    assert done.status == 0
    assert done.out.startswith("warning: latency: step 4: the critical path is 34 long")
    assert f"{file}: sound (" in done.out
