"""Pictures and breakdowns, on the command line."""

import json
from pathlib import Path

import pytest

from schedcc import Costs, compile_pipeline, simulate
from schemas.reports.breakdown import Breakdowns
from tests.support.pictures import Page, rows_of
from tests.support.recorded_lines import write_all


def data_of(file: Path) -> dict:
    return Page(file.read_text()).data


@pytest.fixture
def html(tmp_path) -> Path:
    return tmp_path / "picture.html"


def test_show_draws_a_page_and_a_picture(tmp_path, html, run):
    svg = tmp_path / "picture.svg"
    costs = ("--forward", "1,2", "--transfer", 0.5)
    done = run("show", "-M", 3, "-S", 2, "--overlap", *costs, "--html", html, "--svg", svg)
    assert (done.status, done.err) == (0, "")
    count = sum(len(p.steps) and len([*p.placed()]) for p in plan_of(3, 2).programs)
    assert done.out == f"{html}: {count} instructions\n{svg}: {count} instructions\n"
    timeline = simulate(plan_of(3, 2), Costs(forward=(1, 2), transfer=0.5))
    assert [len(rows) for rows in rows_of(data_of(html))] == [
        len(stage.spans) for stage in timeline.stages
    ]
    assert data_of(html)["panels"][0]["length"] == timeline.makespan
    assert svg.read_text().startswith("<svg ")


def plan_of(micro_batches: int, stages: int):
    return compile_pipeline(micro_batches, stages, overlap=True)


def test_show_marks_the_findings_of_a_file(unsound, html, run):
    assert run("show", unsound, "--html", html).status == 0
    (panel,) = data_of(html)["panels"]
    assert panel["unit"] == "steps"
    assert {mark["severity"] for mark in panel["marks"]} == {"error"}


def test_show_draws_some_steps(html, run):
    assert run("show", "-M", 6, "-S", 3, "--steps", "2:4", "--html", html).status == 0
    assert set(data_of(html)["panels"][0]["columns"]["step"]) == {2, 3}


@pytest.mark.parametrize(
    "costs", [("--forward", 2), ("--transfer", 1), ("--bandwidth", 1), ("--activation-bytes", 1)]
)
def test_costs_without_a_picture_are_refused(run, costs):
    done = run("show", "-M", 3, "-S", 2, *costs)
    assert (done.status, done.out) == (2, "")
    assert done.err == ("schedcc: costs are of times, needed --html FILE or --svg FILE with them\n")


def test_compare_draws_variants_and_schedules_one_above_the_other(html, run):
    assert run("compare", "-M", 4, "-S", 3, "--transfer", 0.25, "--html", html).status == 0
    panels = data_of(html)["panels"]
    assert [panel["title"] for panel in panels] == ["inference, blocking", "inference, overlapped"]
    assert panels[0]["length"] > panels[1]["length"]
    assert run("compare", "-M", 8, "--ranks", 4, "--transfer", 0.2, "--html", html).status == 0
    done = run("compare", "-M", 8, "--ranks", 4, "--transfer", 0.2, "--json")
    figures = json.loads(done.out)["schedules"]
    drawn = data_of(html)["panels"]
    assert [panel["length"] for panel in drawn] == [each["makespan"] for each in figures]
    assert {len(panel["ranks"]) for panel in drawn} == {4}
    colours = [colour["stage"] for colour in data_of(html)["colours"]]
    assert colours == list(range(8))


def test_trace_draws_the_prediction_above_the_recording(tmp_path, html, run):
    plan = compile_pipeline(3, 2)
    file = tmp_path / "plan.json"
    file.write_text(plan.model_dump_json())
    directory = write_all(tmp_path / "run17", plan, runs=2)
    done = run("trace", file, directory, "--run", 1, "--html", html)
    assert (done.status, done.err) == (0, "")
    predicted, recorded = data_of(html)["panels"]
    assert predicted["length"] == simulate(plan, Costs(forward=(1.0, 1.0))).makespan
    assert recorded["note"].endswith("s, run 1")
    assert len(predicted["columns"]["op"]) == len(recorded["columns"]["op"])
    assert run("trace", file, directory, "--transfer", 0.25, "--html", html).status == 0
    (again, _) = data_of(html)["panels"]
    assert again["length"] == simulate(plan, Costs(transfer=0.25)).makespan
    assert run("trace", directory, "--html", html).status == 0
    assert len(data_of(html)["panels"]) == 1
    assert not Path("trace.json").exists()


def test_plans_for_queues_of_channels_are_drawn_under_them(html, run):
    sizes = ("-M", 8, "-S", 8, "--schedule", "interleaved", "--ranks", 4, "--overlap")
    lax = (*sizes, "--transfer", 0.5, "--queue", "channel")
    strict = (*sizes, "--transfer", 0.5)
    makespans = [
        json.loads(run("simulate", *words, "--json").out)["makespan"] for words in (lax, strict)
    ]
    assert makespans[0] < makespans[1]
    for command in ("show", "trace"):
        assert run(command, *lax, "--html", html).status == 0
        (panel,) = data_of(html)["panels"]
        assert (panel["unit"], panel["length"]) == ("seconds", makespans[0])
    found = Breakdowns.model_validate_json(run("breakdown", *lax, "--json").out)
    assert found.pipelines["simulated"].seconds == makespans[0]


def test_trace_writes_the_trace_as_well_if_it_is_told_to(tmp_path, html, run):
    out = tmp_path / "t.json"
    done = run("trace", "-M", 3, "-S", 2, "--html", html, "-o", out)
    assert done.out.splitlines()[0] == f"{html}: 21 instructions"
    assert json.loads(out.read_text())["traceEvents"]


def test_one_run_is_traced_alone(tmp_path, run):
    directory, out = write_all(tmp_path / "r", compile_pipeline(3, 2), runs=2), tmp_path / "t.json"
    assert run("trace", directory, "--run", 1, "-o", out).status == 0
    runs = {
        event["args"].get("run")
        for event in json.loads(out.read_text())["traceEvents"]
        if event["ph"] == "X"
    }
    assert runs == {1}


def test_what_does_not_go_together_is_one_sentence(tmp_path, html, run):
    plan = compile_pipeline(3, 2)
    file = tmp_path / "plan.json"
    file.write_text(plan.model_dump_json())
    directory = write_all(tmp_path / "run17", plan)
    nowhere = Path("no", "such", "directory.html")
    for words, message in (
        (("trace", file, directory, "-o", tmp_path / "t"), "needed --html or --svg for both"),
        (("trace", file, "--run", 1, "--html", html), "--run is 1, needed the directory of a"),
        (("trace", directory, "--run", 4, "--html", html), "run is 4, needed a run of the"),
        (("breakdown", file, "--run", 1), "--run is 1, needed the directory of a recording"),
        (("breakdown", directory, "-M", 3), "options of plans and costs are given, found a"),
        (("breakdown", directory, "--transfer", 1), "options of plans and costs are given, found"),
        (("trace", directory, "--transfer", 1, "--html", html), "found a recording alone"),
        (("trace", directory, "--overlap", "--html", html), "needed a plan file, or the numbers"),
        (("compare", "-M", 3, "-S", 2, "--json", "--html", html), "needed one of both"),
        (("breakdown",), "needed a plan file, or the numbers of micro-batches and stages"),
        (("show", file, "--html", nowhere), f"{nowhere}: cannot be written"),
        (("show", file, "--forward", "1,2,3", "--html", html), "forward lists 3 costs"),
        (("compare", "-M", 3, "--html", html), "needed the numbers of micro-batches and stages"),
        (("show", "-M", 4000, "-S", 3, "--svg", html), "needed at most 20,000 for an SVG"),
    ):
        done = run(*words)
        assert (done.status, done.out, done.err.count("\n")) == (2, "", 1), words
        assert message in done.err


def test_breakdown_says_where_the_time_went(run):
    done = run("breakdown", "-M", 2, "-S", 2, "--forward", "1,2", "--transfer", 0.5)
    assert (done.status, done.err) == (0, "")
    assert [line.rstrip() for line in done.out.splitlines()] == [
        "╭─────┬───────┬─────────┬──────┬─────────┬──────┬───────┬─────╮",
        "│rank │ stage │ forward │ data │ receive │ send │ other │ idle│",
        "├─────┼───────┼─────────┼──────┼─────────┼──────┼───────┼─────┤",
        "│   0 │     0 │     2 s │  0 s │     0 s │  2 s │   2 s │  0 s│",
        "│   1 │     1 │     4 s │  0 s │     2 s │  0 s │   0 s │  0 s│",
        "╰─────┴───────┴─────────┴──────┴─────────┴──────┴───────┴─────╯",
        "6 s; bottleneck: stage 1, mostly forwards: rank 1 works 66.7% of the time",
    ]


def test_breakdown_reads_recordings(tmp_path, run):
    plan = compile_pipeline(3, 4, schedule="interleaved", ranks=2)
    directory = write_all(tmp_path / "r", plan)
    done = run("breakdown", directory, "--json")
    (found,) = Breakdowns.model_validate_json(done.out).pipelines.values()
    assert [[stage.forward for stage in rank.stages] for rank in found.ranks] == [[3, 3], [3, 3]]
    assert "bottleneck: stage 0" in run("breakdown", directory).out
