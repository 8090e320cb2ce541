"""The page in a real browser, where there is one."""

import json
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from schedcc import Costs, compile_pipeline
from schedcc.pictures import page as pages
from schedcc.pictures.page import page
from schedcc.pictures.panel import Panel
from schedcc.pictures.planned import plan_panel
from schedcc.testing.plans import pipeline
from tests.support.pictures import Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
    *("--virtual-time-budget=5000", "--dump-dom"),
)
DRIVER = """
const found = [];
addEventListener("error", (event) => found.push(event.message));
const [canvas] = document.querySelectorAll("canvas");
function press(...keys) {
  for (const key of keys) {
    canvas.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  }
  const tip = document.getElementById("tip");
  return tip.hidden ? null : tip.innerText.split("\\n").filter(Boolean);
}
const untilReady = setInterval(() => {
  if (document.documentElement.dataset.ready !== "true") return;
  clearInterval(untilReady);
  %s
  document.documentElement.dataset.found = JSON.stringify(found);
}, 10);
"""


def shown(tmp_path: Path, panels: list[Panel], *, width: int = 1280) -> Page:
    """The page as it is when its script has run, in which nothing went wrong."""
    file = tmp_path / "page.html"
    file.write_text(page("a page", panels))
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [CHROMIUM, *OPTIONS, profile, f"--window-size={width},900", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    opened = Page(done.stdout)
    assert opened.elements[0][1].get("data-ready") == "true"
    return opened


def driven(tmp_path: Path, monkeypatch, panels: list[Panel], script: str, **options: Any) -> Any:
    """What a script finds that runs behind that of the page."""
    asset = pages._asset
    more = {"page.js": DRIVER % script}
    monkeypatch.setattr(pages, "_asset", lambda name: asset(name) + more.get(name, ""))
    opened = shown(tmp_path, panels, **options)
    return json.loads(unescape(opened.elements[0][1]["data-found"] or "null"))


def test_the_page_opens_and_is_drawn(tmp_path):
    plan = compile_pipeline(8, 4, overlap=True)
    opened = shown(tmp_path, [plan_panel(plan, Costs(transfer=0.25))])
    ((canvas, _),) = opened.all("canvas")
    assert int(canvas["width"] or 0) > 1000
    assert "149 instructions on 4 stages" in (canvas["aria-label"] or "")
    headings = [text for _, text in opened.all("summary")]
    assert headings[0] == "Where the time went: stage 0 is the bottleneck"


@pytest.mark.parametrize("width", [500, 1280])
def test_nothing_is_wider_than_the_window(tmp_path, monkeypatch, width):
    panels = [plan_panel(compile_pipeline(8, s), title="t" * 300) for s in (4, 12)]
    script = "found.push(document.documentElement.scrollWidth - innerWidth);"
    (too_wide,) = driven(tmp_path, monkeypatch, panels, script, width=width)
    assert too_wide <= 0


def test_keys_walk_from_instruction_to_instruction(tmp_path, monkeypatch):
    panels = [plan_panel(compile_pipeline(4, 3), Costs(transfer=0.5))]
    script = """
    found.push(press("ArrowRight"), press("ArrowRight"), press("ArrowRight", "ArrowRight"));
    found.push(press("t"), press("t")[0], press("+", "+", "-", "]", "[")[0], press("ArrowDown")[0]);
    found.push(press("0", "Escape"));
    """
    load, forward, send, receive, *rest = driven(tmp_path, monkeypatch, panels, script)
    assert load[:5] == ["LoadMicroBatch 0", "stage", "0", "micro-batch", "0"]
    assert forward[0] == "ForwardPass 0"
    assert forward[-2:] == ["took", "1 s"]
    assert (send[0], send[-4:]) == ("SendActivation 0", ["to", "stage 1", "arrives", "1.5 s"])
    assert (receive[0], receive[-2:]) == ("RecvActivation 0", ["from", "stage 0"])
    assert rest == ["SendActivation 0", "SendActivation 0", "RecvActivation 0", None]


def test_findings_are_gone_through(tmp_path, monkeypatch):
    plan = pipeline("L0 F0|L1 S0 F1|S1", "|R1 L0 F0|R0 L1 F1", micro_batches=2)
    script = """
    for (let count = 0; count < 3; count++) found.push(press("f")[0]);
    document.querySelectorAll(".marks button")[0].click();
    found.push(document.activeElement === canvas, document.getElementById("next").hidden);
    """
    found = driven(tmp_path, monkeypatch, [plan_panel(plan)], script)
    assert found[-2:] == [True, False]
    assert all(heading.startswith("RecvActivation") for heading in found[:-2])


def test_a_plan_of_nothing_opens(tmp_path):
    assert len(shown(tmp_path, [plan_panel(pipeline("", ""))]).all("canvas")) == 1
