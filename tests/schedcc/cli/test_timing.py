"""`schedcc simulate`, `schedcc compare` and `check` under a transport, on the command line."""

import json

import pytest

import schedcc
from schedcc.testing.plans import pipeline
from schemas import Costs, Report, Timeline, TransportModel
from tests.support.command_line import module

BEST = "all forwards of one micro-batch + (M - 1) x slowest"


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def test_the_module_simulates():
    done = module("simulate", "-M", "64", "-S", "4", "--transfer", "0.25")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("M = 64 micro-batches, S = 4 stages: 99.5 s, 35.7% idle\n")


def test_simulate_shows_where_stages_are_idle(run):
    done = run("simulate", "-M", 2, "-S", 2, "--transfer", 0.5, "--activation-bytes", 100)
    assert (done.status, done.err) == (0, "")
    assert lines(done.out) == [
        "M = 2 micro-batches, S = 2 stages: 4 s, 50.0% idle",
        f"without transfers at best 3 s = {BEST}, 33.3% idle with equal stages",
        "╭──────┬──────┬──────┬───────────╮",
        "│stage │ busy │ idle │ peak bytes│",
        "├──────┼──────┼──────┼───────────┤",
        "│    0 │  2 s │  2 s │        100│",
        "│    1 │  2 s │  2 s │        100│",
        "╰──────┴──────┴──────┴───────────╯",
    ]


def test_simulate_never_claims_a_best_time_that_it_beats(run):
    arguments = ("--overlap", "--forward", "1,2,1", "--transfer", 0.25)
    first, second, *_ = lines(run("simulate", "-M", 4, "-S", 3, *arguments).out)
    assert first == "M = 4 micro-batches, S = 3 stages: 10.5 s, 49.2% idle"
    assert second.startswith("without transfers at best 10 s = ")


def test_simulate_of_one_stage_is_never_idle(run):
    first, second, *_ = lines(run("simulate", "-M", 3, "-S", 1, "--forward", "0.5").out)
    assert first == "M = 3 micro-batches, S = 1 stages: 1.5 s, 0.0% idle"
    assert second == f"without transfers at best 1.5 s = {BEST}, 0.0% idle with equal stages"


def test_simulate_prints_the_timeline_as_json(run):
    costs = ("--forward", "1,2", "--transfer", 0.5, "--activation-bytes", 8, "--bandwidth", 16)
    model = ("--overlap", "--queue", "channel", "--buffered-sends", 1)
    done = run("simulate", "-M", 3, "-S", 2, *costs, *model, "--json")
    assert (done.status, done.err) == (0, "")
    assert Timeline.model_validate_json(done.out) == schedcc.simulate(
        schedcc.compile_pipeline(3, 2, overlap=True),
        Costs(forward=(1, 2), transfer=0.5, activation_bytes=8, bandwidth=16),
        TransportModel(queue="channel", buffered_sends=1),
    )


def test_simulate_reads_a_plan_file(run, tmp_path):
    file = tmp_path / "plan.json"
    assert run("compile", "-M", 2, "-S", 2, "--overlap", "-o", file).status == 0
    assert run("simulate", file) == run("simulate", "-M", 2, "-S", 2, "--overlap")


@pytest.mark.parametrize("number", [1, 9])
def test_simulate_wants_all_stages(run, tmp_path, number):
    file = tmp_path / "stage.json"
    assert run("compile", "-M", number, "-S", 2, "--stage-id", 1, "-o", file).status == 0
    complaint = f"schedcc: {file}: the plan of stage 1 alone, needed all stages\n"
    assert run("simulate", file) == (2, "", complaint)


def test_simulate_refuses_an_unsound_plan(run, unsound):
    complaint = "coverage: stage 0: output of micro-batch 0 never sent, needed once"
    refused = f"schedcc: a plan with errors has no timeline: {complaint}\n"
    assert run("simulate", unsound) == (2, "", refused)


def test_compare_sets_evaluation_beside_training(run):
    done = run("compare", "-M", 4, "-S", 3, "--transfer", 0.25)
    assert (done.status, done.err) == (0, "")
    assert lines(done.out) == [
        "M = 4 micro-batches, S = 3 stages, one queue per stage, rendezvous",
        "╭───────────────────────┬──────────────────────┬────────────────────────┬───────────────╮",
        "│                       │ evaluation, blocking │ evaluation, overlapped │ training, 1F1B│",
        "├───────────────────────┼──────────────────────┼────────────────────────┼───────────────┤",
        "│steps                  │                    6 │                      6 │             12│",
        "│buffers of a stage     │                    2 │                      2 │    3 down to 1│",
        "│bubble of equal stages │                33.3% │                  33.3% │          33.3%│",
        "│seconds, simulated     │                    8 │                    6.5 │              -│",
        "│bubble, simulated      │                50.0% │                  38.5% │              -│",
        "╰───────────────────────┴──────────────────────┴────────────────────────┴───────────────╯",
    ]


@pytest.mark.parametrize(
    ("size", "steps", "kept"),
    [
        ((1, 1), ["1", "1", "2"], ["2", "2", "1"]),
        ((1, 3), ["3", "3", "6"], ["2", "2", "1"]),
        ((2, 4), ["5", "5", "10"], ["2", "2", "2 down to 1"]),
        ((8, 4), ["11", "11", "22"], ["2", "2", "4 down to 1"]),
    ],
)
def test_compare_counts_steps_and_buffers(run, size, steps, kept):
    table = lines(run("compare", "-M", size[0], "-S", size[1]).out)
    rows = {
        row[0]: row[1:] for row in ([w.strip() for w in t.strip("│").split("│")] for t in table)
    }
    assert (rows["steps"], rows["buffers of a stage"]) == (steps, kept)


def test_compare_names_the_transport(run):
    done = run("compare", "-M", 2, "-S", 2, "--queue", "channel", "--buffered-sends", 2)
    assert lines(done.out)[0].endswith("S = 2 stages, one queue per channel, 2 buffered sends")


SECONDS = "needed seconds such as 1 or 0.5,0.5,2"


@pytest.mark.parametrize("command", ["simulate", "compare"])
@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--forward=x", f"--forward is 'x', {SECONDS}"),
        ("--forward=", f"--forward is '', {SECONDS}"),
        ("--forward=1,,1", f"--forward is '1,,1', {SECONDS}"),
        ("--forward=-1", f"--forward is '-1', {SECONDS}"),
        ("--forward=nan", f"--forward is 'nan', {SECONDS}"),
        ("--forward=1,inf,1", f"--forward is '1,inf,1', {SECONDS}"),
        (
            "--forward=1,2",
            "forward lists 2 costs, needed a single number or a list of 3 (stages=3)",
        ),
        (
            "--forward=1e308",
            "the costs add up to inf seconds, needed a finite number of seconds",
        ),
        ("--transfer=-1", "transfer is -1.0, needed at least 0.0"),
        ("--transfer=nan", "transfer is nan, needed a finite number"),
        ("--transfer=inf", "transfer is inf, needed a finite number"),
        ("--activation-bytes=-1", "activation_bytes is -1, needed at least 0"),
        (
            f"--activation-bytes={2**63}",
            f"activation_bytes is {2**63}, needed less than {2**63}",
        ),
        ("--bandwidth=0", "bandwidth is 0.0, needed greater than 0"),
        ("--bandwidth=inf", "bandwidth is inf, needed a finite number"),
        ("--buffered-sends=-1", "buffered_sends is -1, needed at least 0"),
    ],
)
def test_costs_that_cannot_be_are_one_line_and_status_2(run, command, option, complaint):
    assert run(command, "-M", 4, "-S", 3, option) == (2, "", f"schedcc: {complaint}\n")


@pytest.mark.parametrize("command", ["simulate", "compare"])
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("-M 0 -S 2", "micro_batches is 0, needed an integer of at least 1"),
        ("-M 2 -S 0", "stages is 0, needed an integer of at least 1"),
        ("-M 2", "needed the numbers of micro-batches and stages, such as -M 8 -S 4"),
    ],
)
def test_sizes_that_cannot_be_are_one_line_and_status_2(run, command, arguments, complaint):
    assert run(command, *arguments.split()) == (2, "", f"schedcc: {complaint}\n")


@pytest.mark.parametrize("command", ["simulate", "compare"])
def test_a_queue_that_does_not_exist_is_explained_with_status_2(run, command):
    done = run(command, "-M", 2, "-S", 2, "--queue", "world")
    assert (done.status, done.out) == (2, "")
    assert "'world' is not one of 'stage', 'channel'" in done.err
    assert "Traceback" not in done.err


def test_simulate_takes_a_file_or_numbers(run, unsound):
    complaint = "schedcc: needed a plan file or -M and -S, not both\n"
    assert run("simulate", unsound, "-M", 2) == (2, "", complaint)


LAXER = ("--queue", "channel", "--buffered-sends", 1)


def test_check_asks_about_the_transport_of_the_options(run, tmp_path):
    file = tmp_path / "plan.json"
    run("compile", "-M", 3, "-S", 2, "-o", file)
    done = run("check", file, "--queue", "channel", "--buffered-sends", 2)
    assert done.out.endswith("latency; one queue per channel, 2 buffered sends)\n")
    report = Report.model_validate_json(run("check", file, *LAXER, "--json").out)
    assert report.ok
    assert report.transport == TransportModel(queue="channel", buffered_sends=1)


def test_check_finds_the_deadlock_that_a_laxer_transport_hides(run, tmp_path):
    file = tmp_path / "plan.json"
    plan = pipeline("S0:1 R1:1", "S1:0 R0:0", micro_batches=2)
    file.write_text(plan.model_dump_json())
    for options, stuck in (((), True), (LAXER, False)):
        done = run("check", file, *options)
        assert done.status == 1  # nothing is forwarded, under any transport
        assert ("\ndeadlock: stages 0 and 1 wait for each other:" in done.out) is stuck


def test_check_asks_nothing_about_the_transport_of_one_stage(run, tmp_path):
    file = tmp_path / "stage.json"
    run("compile", "-M", 3, "-S", 2, "--stage-id", 0, "-o", file)
    done = run("check", file, *LAXER)
    assert (done.status, "queue" in done.out) == (0, False)
    assert Report.model_validate_json(run("check", file, *LAXER, "--json").out).transport is None


def test_check_refuses_a_transport_that_cannot_be(run, unsound):
    complaint = "schedcc: buffered_sends is -1, needed at least 0\n"
    assert run("check", unsound, "--buffered-sends=-1") == (2, "", complaint)


@pytest.mark.parametrize("command", ["simulate", "trace"])
@pytest.mark.parametrize("number", [10**9, 10**30, 10**300])
@pytest.mark.parametrize("key", ["stages", "micro_batches"])
def test_a_header_of_any_size_is_refused_before_anything_of_that_size_is_made(
    run, tmp_path, command, number, key
):
    plan = schedcc.compile_pipeline(2, 2).model_copy(update={key: number})
    file = tmp_path / "plan.json"
    file.write_text(plan.model_dump_json())
    output = ["-o", tmp_path / "trace.json"][: 2 * (command == "trace")]
    for forward in ("1", "1,2"):
        done = run(command, file, "--forward", forward, *output)
        assert (done.status, done.out) == (2, "")
        assert done.err.startswith("schedcc: a plan with errors has no timeline: ")
        assert done.err.count("\n") == 1
    with pytest.raises(schedcc.UnsoundPlanError):
        schedcc.simulate(plan)


def test_schedules_are_compared_side_by_side_on_as_many_ranks(run):
    done = run("compare", "-M", 8, "--ranks", 4, "--transfer", 0.2)
    rows = [line.split("  ")[0].strip() for line in done.out.splitlines() if line.strip()]
    assert rows[1:] == [
        *("inference, blocking", "inference, overlapped"),
        *("interleaved, blocking", "interleaved, overlapped"),
        *("interleaved_wide, blocking", "interleaved_wide, overlapped"),
        *("v_shape, blocking", "v_shape, overlapped"),
        "best: interleaved_wide, overlapped",
    ]
    done = run("compare", "-M", 8, "--ranks", 4, "--transfer", 0.2, "--json")
    assert json.loads(done.out)["best"] == "interleaved_wide, overlapped"
    done = run("compare", "-M", 8, "--ranks", 4, "--transfer", 0.2, "--queue", "stage")
    assert done.out.splitlines()[-1] == "best: inference, overlapped"
