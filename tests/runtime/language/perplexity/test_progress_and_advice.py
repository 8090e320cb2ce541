"""What a run says while it goes on, and which partition would have been faster."""

import io
import re
from pathlib import Path
from typing import Any

import pytest

from runtime.language import progress
from runtime.language.perplexity.advice import advice, bottleneck, command, measured_layers
from runtime.language.perplexity.job import Job
from runtime.language.perplexity.order import Order
from runtime.language.progress import Display, style_for
from schemas import StageSummary


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal_lines_elsewhere_and_nothing_if_quiet():
    assert style_for(Terminal(), quiet=False) == "bar"
    assert style_for(io.StringIO(), quiet=False) == "lines"
    assert style_for(Terminal(), quiet=True) == "none"


def test_a_bar_is_drawn_over_itself_and_leaves_nothing(monkeypatch):
    monkeypatch.setattr(progress, "BAR_SECONDS", 0.0)
    out = Terminal()
    display = Display("bar", out)
    display.phase("loading")
    display.begin(2, 100)
    assert display.is_due(last=False)
    display.progress(4, 8, 300, 2.5, 0.25)
    display.clear()
    pictures = out.getvalue().split("\r\x1b[K")
    assert pictures[1] == "loading ..."
    seen = r"#{12}-{12} 4/8 micro-batches, loss 2\.5000 ± 0\.2500, \d+ tokens/s, 0:00 left"
    assert re.fullmatch(seen, pictures[2])
    assert pictures[3] == ""
    assert "\n" not in out.getvalue()


def test_lines_come_now_and_then(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    display = Display("lines", out)
    display.begin(2, 100)
    for done in range(3, 13):
        now[0] += 6.0
        if display.is_due(last=done == 12):
            display.progress(done, 12, 100 * done, 2.0, None)
    lines = out.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0] == ("pipeval: 3/12 micro-batches, loss 2.0000, 33 tokens/s, 0:54 left")
    assert lines[1].startswith("pipeval: 6/12 micro-batches"), "the next one 15 seconds later"


def test_quiet_is_silent_and_a_stream_that_is_closed_ends_nothing():
    out = io.StringIO()
    quiet = Display("none", out)
    quiet.phase("loading")
    assert not quiet.is_due(last=True)
    assert out.getvalue() == ""
    out.close()
    Display("lines", out).phase("loading")


def job(**changes: Any) -> Job:
    settings: dict[str, Any] = {
        "model": "m",
        "texts": (Path("t"),),
        "order": Order("inference", 2, 2, (0, 1)),
        "micro_batch_size": 1,
        "sequence_length": 8,
        "max_windows": None,
        "documents": "whole",
        "separator_id": None,
        "dtype": "float32",
        "overlap": True,
        "channels": None,
        "threads": 1,
        "verify": False,
        "timeout": 1.0,
        "cuda_graphs": False,
        "check_finite": False,
        "progress": "none",
        "record": None,
        "started": 0.0,
    }
    return Job(**settings | changes)


def stage(number: int, first: int, layers: int, forward: float) -> StageSummary:
    rest = dict.fromkeys(("load", "transfer", "epilogue", "other"), 0.0)
    return StageSummary(
        stage_id=number,
        device="cpu",
        first_layer=first,
        layers=layers,
        parameters=1,
        forward_seconds=forward,
        **{f"{name}_seconds": value for name, value in rest.items()},
    )


STAGES = (stage(0, 0, 2, 2.0), stage(1, 2, 4, 8.0))


def test_layers_take_what_their_stage_took():
    assert measured_layers(STAGES, [1, 1, 2, 2, 2, 2]) == [1, 1, 2, 2, 2, 2]
    assert bottleneck(STAGES) == 1


@pytest.mark.parametrize("micro_batches", [4, 1000])
def test_a_better_partition_is_predicted_by_the_times_of_its_slowest_stage(micro_batches):
    found = advice(job(command=("--text", "a b")), STAGES, [1, 1, 2, 2, 2, 2], micro_batches)
    assert found is not None
    assert found.boundaries == (0, 3, 6)
    # M forwards of the slowest stage, and one of the other: of ten seconds in all, 6 and 4.
    assert found.predicted_seconds == pytest.approx(6 + 4 / micro_batches)
    assert found.predicted_now == pytest.approx(8 + 2 / micro_batches)
    assert found.command == "pipeval --text 'a b' --partition 0,3,6"


def test_nothing_is_advised_where_nothing_is_gained():
    even = (stage(0, 0, 3, 3.0), stage(1, 3, 3, 3.0))
    assert advice(job(), even, [1.0] * 6, 8) is None
    assert advice(job(), even[:1], [1.0] * 3, 8) is None
    assert advice(job(), STAGES, [1.0] * 6, 0) is None


def test_a_partition_that_was_asked_for_is_replaced():
    assert (
        command(["--partition", "0,1,6", "-S", "2"], (0, 4, 6)) == "pipeval -S 2 --partition 0,4,6"
    )
    assert command(["--partition=0,1,6", "-S", "2"], (0, 4, 6)) == "pipeval -S 2 --partition 0,4,6"
