"""SVG shows what the page shows."""

from xml.etree import ElementTree

import pytest

from schedcc import Costs, compile_pipeline
from schedcc.pictures import svg as pictures
from schedcc.pictures.planned import plan_panel
from schedcc.pictures.svg import svg
from schedcc.testing.plans import pipeline

NAME = "{http://www.w3.org/2000/svg}"


def boxes(text: str, **wanted: str) -> list[ElementTree.Element]:
    rects = ElementTree.fromstring(text).iter(f"{NAME}rect")
    return [r for r in rects if all(r.get(name) == value for name, value in wanted.items())]


def test_forwards_are_as_wide_as_they_are_long_and_stand_at_their_times():
    plan = compile_pipeline(4, 2)
    text = svg([plan_panel(plan, Costs(forward=(1.0, 2.0)))])
    first, second = (boxes(text, fill=colour) for colour in ("#0072b2", "#e69f00"))
    assert (len(first), len(second)) == (4, 4)
    pixels = float(second[1].get("x", 0)) - float(second[0].get("x", 0))
    assert float(second[0].get("width", 0)) == pytest.approx(pixels, abs=1)
    assert float(first[0].get("width", 0)) == pytest.approx(pixels / 2, abs=1)
    titles = [box.findtext(f"{NAME}title") for box in first]
    assert titles == ["F0", "F1", "F2", "F3"]


def test_panels_stand_below_each_other_on_one_axis():
    plans = [compile_pipeline(4, 2, overlap=overlap) for overlap in (False, True)]
    text = svg([plan_panel(plan, Costs(transfer=0.5)) for plan in plans])
    bands = boxes(text, **{"class": "b"})[:4]
    assert len({band.get("y") for band in bands}) == 4
    assert float(bands[0].get("width", 0)) > float(bands[2].get("width", 0))
    arrows = ElementTree.fromstring(text).iterfind(f".//{NAME}path[@class='a']")
    assert len(list(arrows)) == 8


def test_findings_are_framed_and_steps_are_named():
    text = svg([plan_panel(pipeline("L0 F0|L1 S0 F1|S1", "|R1 L0 F0|R0 L1 F1", micro_batches=2))])
    framed = [box.findtext(f"{NAME}title", "") for box in boxes(text, **{"class": "error"})]
    assert any(title.startswith("channel: stage 1, step 1: ") for title in framed)
    words = [element.text for element in ElementTree.fromstring(text).iter(f"{NAME}text")]
    assert {"step 0", "step 1", "R1", "S0"} <= {*words}


def test_more_than_viewers_can_show_is_refused(monkeypatch):
    monkeypatch.setattr(pictures, "MOST_DRAWN", 10)
    panel = plan_panel(compile_pipeline(4, 3))
    with pytest.raises(ValueError, match=r"found 40 instructions, needed at most 10 for an SVG"):
        svg([panel])
