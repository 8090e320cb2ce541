"""`schedcc show` and the tables of the other commands: nothing is cut off, at any width."""

import os
import re
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schedcc.testing.strategies import sizes
from tests.support.paths import ROOT


def plain(out: str) -> list[str]:
    """The lines without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", out).splitlines()


def drawing(lines: list[str]) -> list[str]:
    """The lines of a drawn table."""
    return [line for line in lines if line.startswith(tuple("╭│├╰"))]


def grid(lines: list[str]) -> list[list[str]]:
    """The cells of a drawn table."""
    return [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in lines
        if line.startswith("│")
    ]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    width=st.integers(1, 240),
    size=sizes(14, 5),
    overlap=st.booleans(),
    colours=st.sampled_from([None, "NO_COLOR", "FORCE_COLOR"]),
)
def test_what_is_drawn_is_drawn_whole_at_every_width(
    run, monkeypatch, width, size, overlap, colours
):
    """Steps that do not fit are left out, and the title says how to see them."""
    monkeypatch.setenv("COLUMNS", str(width))
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    if colours is not None:
        monkeypatch.setenv(colours, "1")
    arguments = ["-M", size[0], "-S", size[1], *["--overlap"][:overlap]]
    shown = plain(run("show", *arguments).out)
    total = sum(size) - 1
    whole = plain(run("show", *arguments, "--steps", ":").out)
    title, *rest = shown
    (left_out,) = [line for line in rest if "--steps" in line] or [""]
    count = len(grid(shown)[0]) - 1
    assert left_out == (
        ""
        if count == total
        else f"the other {total - count} do not fit into {width} columns: "
        f"--steps {count}:{total} draws them"
    )
    assert ("drawn:" in title) == (count < total)
    assert grid(shown) == [row[: count + 1] for row in grid(whole)]
    assert "…" not in "".join(shown)
    if count:
        assert max(map(len, drawing(shown))) <= width
    if count < total:  # and one more would not have fitted
        more = plain(run("show", *arguments, "--steps", f":{count + 1}").out)
        assert max(map(len, drawing(more))) > width


@pytest.mark.parametrize("width", [1, 20, 40])
def test_no_number_of_a_table_is_cut_off_on_a_narrow_terminal(run, monkeypatch, width):
    commands = (["simulate", "--activation-bytes", 10**9], ["compare"])
    for command in commands:
        monkeypatch.setenv("COLUMNS", "200")
        wide = run(*command, "-M", 8, "-S", 4).out
        monkeypatch.setenv("COLUMNS", str(width))
        narrow = run(*command, "-M", 8, "-S", 4).out
        assert sorted(re.findall(r"\d[\d.]*", narrow)) == sorted(re.findall(r"\d[\d.]*", wide))
        assert "…" not in narrow


def test_show_writes_whole_lines_into_a_pipe():
    done = subprocess.run(
        [sys.executable, "-m", "schedcc", "show", "-M", "8", "-S", "4"],
        env={name: value for name, value in os.environ.items() if name != "COLUMNS"},
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=True,
    )
    title, more, *_ = done.stdout.splitlines()
    assert title.endswith("11 steps (drawn: 0 to 5)")
    assert more == "the other 5 do not fit into 80 columns: --steps 6:11 draws them"
    assert "…" not in done.stdout
    assert max(map(len, drawing(done.stdout.splitlines()))) <= 80
