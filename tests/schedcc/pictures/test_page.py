"""The page is one file, asks for nothing, and runs nothing that comes from a plan."""

import hashlib
import re
import tomllib
from base64 import b64encode
from fnmatch import fnmatch

import pytest

from schedcc import check, compile_pipeline, simulate
from schedcc.pictures import page as pages
from schedcc.pictures.colours import is_dark, stage_colours
from schedcc.pictures.page import page
from schedcc.pictures.planned import plan_panel
from schedcc.pictures.svg import svg
from schemas import PipelinePlan
from tests.support.paths import ROOT
from tests.support.pictures import Page

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028'\"&{{data}}"


def evil_plan(*, sound: bool = True) -> PipelinePlan:
    plan = compile_pipeline(2, 2).model_copy(update={"schedule": EVIL})
    return plan if sound else plan.model_copy(update={"programs": plan.programs[:1]})


@pytest.mark.parametrize("sound", [True, False])
def test_what_a_plan_says_is_text_in_the_page(sound):
    panel = plan_panel(evil_plan(sound=sound))
    assert bool(panel.marks) != sound
    shown = Page(page(panel.title, [panel]))
    assert [attrs.get("type") for attrs, _ in shown.all("script")] == ["application/json", "module"]
    assert shown.all("img") == []
    visible = EVIL.replace("\u2028", "\\u2028")
    assert shown.data["title"] == f"{visible}: M = 2, S = 2"
    assert "".join(shown.all("h1")[0][1]) == shown.data["title"]


def test_the_page_runs_its_own_script_only_and_asks_for_nothing():
    text = page("a page", [plan_panel(compile_pipeline(2, 2))])
    shown = Page(text)
    (policy,) = [
        attrs["content"] for attrs, _ in shown.all("meta") if attrs.get("http-equiv") is not None
    ]
    ((_, _), (_, script)), ((_, style),) = shown.all("script"), shown.all("style")
    hashes = [
        f"'sha256-{b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"
        for part in (script, style)
    ]
    assert policy == f"default-src 'none'; script-src {hashes[0]}; style-src {hashes[1]}"
    assert not re.search(r"https?://|\bsrc=|\bhref=|\burl\(|@import", text)
    assert "innerHTML" not in text


def test_the_files_of_the_page_are_in_the_package():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folder = ROOT / "schedcc"
    files = [str(file.relative_to(folder)) for file in (folder / "pictures/assets").iterdir()]
    assert {f"pictures/assets/{name}.js" for name in pages._SCRIPTS} <= {*files}
    for file in files:
        assert any(fnmatch(file, p) for p in patterns["package-data"]["schedcc"]), file


def test_pages_grow_by_few_bytes_an_instruction():
    small, large = (plan_panel(compile_pipeline(m, 8, overlap=True)) for m in (16, 256))
    bytes_of = [len(page("", [panel])) for panel in (small, large)]
    boxes = [len(panel.boxes.start) for panel in (small, large)]
    assert (bytes_of[1] - bytes_of[0]) / (boxes[1] - boxes[0]) < 50


def test_more_than_a_browser_can_move_is_refused(monkeypatch):
    panel = plan_panel(compile_pipeline(4, 3))
    monkeypatch.setattr(pages, "MOST_BOXES", 10)
    with pytest.raises(ValueError, match="found 40 instructions, needed at most 10 for a page"):
        page("", [panel])
    assert Page(page("", [panel.in_steps(0, 2)])).data["panels"][0]["note"].endswith("steps 0 to 1")


def test_stages_have_colours_of_their_own():
    for count in (1, 7, 8, 64):
        colours = stage_colours(range(count))
        assert len(set(colours.values())) == count
        assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours.values())
    assert (is_dark("#000000"), is_dark("#ffffff")) == (True, False)


@pytest.mark.parametrize("sound", [True, False])
def test_notebooks_show_plans_in_a_frame_of_their_own(sound):
    frame = Page(evil_plan(sound=sound)._repr_html_())
    assert [tag for tag, _ in frame.elements] == ["iframe"]
    ((attrs, _),) = frame.all("iframe")
    assert attrs["sandbox"] == "allow-scripts"
    inside = Page(attrs["srcdoc"])
    assert inside.data["panels"][0]["unit"] == ("seconds" if sound else "steps")


def test_notebooks_show_timelines_reports_and_single_stages():
    plan = compile_pipeline(3, 2)
    timeline = Page(Page(simulate(plan)._repr_html_()).all("iframe")[0][0]["srcdoc"]).data
    assert timeline["panels"][0]["length"] == 4.0
    stage = Page(Page(plan.stage(1)._repr_html_()).all("iframe")[0][0]["srcdoc"]).data
    assert len(stage["panels"][0]["ranks"]) == 1
    assert "<b>sound</b>" in check(plan)._repr_html_()
    report = Page(check(evil_plan(sound=False))._repr_html_())
    assert {tag for tag, _ in report.elements} <= {"p", "b", "table", "tr", "td"}
    assert "findings" in report.all("b")[0][1]


def test_notebooks_do_not_keep_what_is_too_large(monkeypatch):
    from schedcc.pictures import notebook

    monkeypatch.setattr(notebook, "MOST_SHOWN", 10)
    plan = compile_pipeline(4, 3)
    for value in (plan, simulate(plan), plan.stage(1)):
        assert "schedcc show --html FILE" in value._repr_html_()
        assert "<iframe" not in value._repr_html_()


def test_svg_is_text_that_runs_nothing_either():
    panel = plan_panel(evil_plan(sound=False))
    shown = Page(svg([panel]))
    assert {tag for tag, _ in shown.elements} <= {"svg", "title", "style", "path", "rect", "text"}
