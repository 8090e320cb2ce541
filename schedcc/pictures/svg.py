"""A picture as SVG, for papers and READMEs: what the page shows of a panel, without its script."""

import math
from collections.abc import Iterator, Sequence
from html import escape

import numpy as np

from schedcc.pictures.colours import is_dark
from schedcc.pictures.content import colours_of, kind_of, rank_name, symbol_of
from schedcc.pictures.panel import Panel
from schedcc.table.codes import IS_POST, OPS

MOST_DRAWN = 20_000
"""Boxes of a picture; viewers are slow with more, and nobody sees them."""

_WIDTH, _GUTTER, _MARGIN = 960.0, 64.0, 12.0
_ROW, _RULER, _TITLE, _LEGEND = 30.0, 34.0, 26.0, 22.0
_LETTER = 6.4
"""Width of a letter, about."""

_STYLE = """
text{font:12px system-ui,sans-serif;fill:#1d2125}.t{font-weight:600;font-size:14px}.f{fill:#5c6670}
.p{fill:#fff}.l{stroke:#d5dade}.b{fill:#e4e8eb}.receive{fill:#8d97a0}.send{fill:none;stroke:#5c6670}
.load{fill:#a0764b}.other{fill:#3d454c}.a{stroke:#1d2125;stroke-opacity:.6;fill:none}
.h{fill:#1d2125}.error,.warning{fill:none;stroke:#b3261e;stroke-width:2}.warning{stroke:#9a6700}
.m{text-anchor:middle;font-size:11px}.e{text-anchor:end}text.w{fill:#fff}text.k{fill:#000}
@media(prefers-color-scheme:dark){text{fill:#e6e9ec}.f{fill:#a2abb3}.p{fill:#14171a}
.l{stroke:#363d44}.b{fill:#24292e}.receive{fill:#7d8790}.send{stroke:#b3bcc4}.load{fill:#c79a6b}.other{fill:#4f5963}
.a{stroke:#e6e9ec}.h{fill:#e6e9ec}.error{stroke:#ff897d}.warning{stroke:#f2c14e}}
"""


def svg(panels: Sequence[Panel]) -> str:
    """The panels one above the other, on one time axis, as an SVG document.

    Raises:
        ValueError: there are more than `MOST_DRAWN` instructions.
    """
    boxes = sum(len(panel.boxes.start) for panel in panels)
    if boxes > MOST_DRAWN:
        raise ValueError(
            f"found {boxes:,} instructions, needed at most {MOST_DRAWN:,} for an SVG (--steps A:B "
            "takes a part, --html draws them all)"
        )
    longest: dict[str, float] = {}
    for panel in panels:
        longest[panel.unit] = max(longest.get(panel.unit, 0.0), panel.length, 1e-12)
    parts: list[str] = []
    top, fills = 4.0, colours_of(panels)
    for panel in panels:
        drawing = _Drawing(panel, top, (_WIDTH - _GUTTER - _MARGIN) / longest[panel.unit])
        parts += drawing.elements(fills)
        top = drawing.bottom + 8
    parts += _legend(panels, top)
    height = top + _LEGEND
    title = escape("; ".join(f"{panel.title}, {panel.note}" for panel in panels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {height:g}" '
        f'width="{_WIDTH:g}" height="{height:g}" role="img"><title>{title}</title>'
        f'<style>{_STYLE}</style>\n<rect class="p" width="100%" height="100%" rx="6"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


class _Drawing:
    """One panel, at its place."""

    def __init__(self, panel: Panel, top: float, pixels: float) -> None:
        self.panel, self.top, self.pixels = panel, top, pixels
        self.place = {rank: index for index, rank in enumerate(panel.ranks)}
        rows = panel.boxes.table.rows
        self.staged = len(panel.stages) > len(panel.ranks)
        self.op, self.stage, self.micro_batch = (
            getattr(rows, name).tolist() for name in ("op", "stage", "micro_batch")
        )
        self.rank = panel.boxes.table.rank.tolist()
        self.start = panel.boxes.start.tolist()
        # A rank goes on from the start of a post.
        posted = IS_POST[rows.op] & (panel.unit == "seconds")
        self.until = np.where(posted, panel.boxes.start, panel.boxes.end).tolist()

    @property
    def bottom(self) -> float:
        """Where the panel ends."""
        return self._row(len(self.panel.ranks))

    def elements(self, fills: dict[int, str]) -> Iterator[str]:
        """All of it, from the back to the front; `fills`: the colour of each stage."""
        yield _text(4, self.top + 15, f"{self.panel.title}, {self.panel.note}", "t")
        yield from self._ruler()
        for rank, index in self.place.items():
            y = self._row(index)
            yield _text(_GUTTER - 8, y + 19, rank_name(self.panel, rank), "e")
            yield _rect(self._x(0), y + 2, self.panel.length * self.pixels, _ROW - 4, "b")
        for number in range(len(self.start)):
            yield from self._box(number, fills)
        arrows = self.panel.arrows
        for send, receive, end in zip(
            arrows.send.tolist(), arrows.receive.tolist(), arrows.end.tolist(), strict=True
        ):
            yield self._arrow(send, receive, end)
        for mark in self.panel.marks:
            if mark.start is not None and mark.end is not None:
                first = 0 if mark.rank is None else self.place[mark.rank]
                x, y = self._x(mark.start), self._row(first)
                width = max(3.0, (mark.end - mark.start) * self.pixels)
                height = (self.bottom if mark.rank is None else self._row(first + 1)) - y
                yield _rect(x, y + 1, width, height - 2, mark.severity, title=mark.text)

    def _x(self, time: float) -> float:
        return _GUTTER + time * self.pixels

    def _row(self, index: int) -> float:
        return self.top + _TITLE + _RULER + index * _ROW

    def _ruler(self) -> Iterator[str]:
        y, bottom = self.top + _TITLE, self.bottom
        for phase in self.panel.phases:
            x = self._x(phase.start)
            yield f'<path class="l" d="M{x:.2f} {y:g}V{bottom:g}"/>'
            if (phase.end - phase.start) * self.pixels > len(phase.name) * _LETTER:
                yield _text(x + 4, y + 11, phase.name, "f")
        distance = _distance(70 / self.pixels, whole=self.panel.unit == "steps")
        count = math.floor(self.panel.length / distance * (1 + 1e-12))
        for number in range(min(count, 1000) + 1):
            text = f"{number * distance:.6g}"
            text = f"step {text}" if self.panel.unit == "steps" else f"{text} s"
            x = self._x(number * distance)
            yield f'<path class="l" d="M{x:.2f} {y + 26:g}v7"/>'
            if x + 7 * _LETTER < _WIDTH:
                yield _text(x + 3, y + 28, text, "f")

    def _box(self, number: int, fills: dict[int, str]) -> Iterator[str]:
        kind = kind_of(self.op[number])
        x, y = self._x(self.start[number]), self._row(self.place[self.rank[number]])
        width = (self.until[number] - self.start[number]) * self.pixels
        label = self._label(number)
        if kind == "forward":
            fill = fills.get(self.stage[number], "#000000")
            yield _rect(x, y + 2, max(0.5, width - 0.8), _ROW - 4, "", fill, title=label)
            colour = "w" if is_dark(fill) else "k"
        elif width > 0.5:
            kind = kind.removeprefix("post-")
            yield _rect(x, y + 8, max(0.5, width - 0.8), _ROW - 16, kind, title=label)
            colour = {"receive": "k", "load": "k", "other": "w"}.get(kind, "")
        else:
            return
        if width > (len(label) + 1) * _LETTER:
            yield _text(x + width / 2, y + 19, label, f"m {colour}".strip())

    def _label(self, number: int) -> str:
        symbol = symbol_of(self.op[number])
        if not symbol:
            name: str = OPS[self.op[number]].__name__
            return name
        stage = str(self.stage[number]) if self.staged else ""
        return f"{stage}{symbol}{self.micro_batch[number]}"

    def _arrow(self, send: int, receive: int, end: float) -> str:
        down = self.place[self.rank[receive]] > self.place[self.rank[send]]
        x1, x2 = self._x(self.start[send]), self._x(end)
        quarter = _ROW / 4
        y1 = self._row(self.place[self.rank[send]]) + (3 if down else 1) * quarter
        y2 = self._row(self.place[self.rank[receive]]) + (1 if down else 3) * quarter
        length = math.hypot(x2 - x1, y2 - y1) or 1.0
        dx, dy = 5 * (x2 - x1) / length, 5 * (y2 - y1) / length
        head = (
            f"M{x2:.2f} {y2:.2f}L{x2 - dx - dy / 2:.2f} {y2 - dy + dx / 2:.2f}"
            f"L{x2 - dx + dy / 2:.2f} {y2 - dy - dx / 2:.2f}Z"
        )
        line = f'<path class="a" d="M{x1:.2f} {y1:.2f}L{x2 - dx:.2f} {y2 - dy:.2f}"/>'
        return f'{line}<path class="h" d="{head}"/>'


def _distance(least: float, *, whole: bool) -> float:
    """Between ticks: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(least))
    found = next(power * times for times in (1, 2, 5, 10) if power * times >= least)
    return max(1.0, found) if whole else found


def _legend(panels: Sequence[Panel], top: float) -> Iterator[str]:
    used = {
        kind_of(op).removeprefix("post-")
        for panel in panels
        for op in np.unique(panel.boxes.table.rows.op).tolist()
    }
    words = [("receive", "receive"), ("send", "send"), ("load", "load"), ("other", "other")]
    words = [(kind, text) for kind, text in words if kind in used]
    x = _GUTTER
    for kind, text in [*words, ("b", "bubble")]:
        yield _rect(x, top + 3, 14, 10, kind)
        yield _text(x + 19, top + 12, text, "f")
        x += 40 + len(text) * _LETTER


def _rect(
    x: float, y: float, width: float, height: float, kind: str, fill: str = "", title: str = ""
) -> str:
    paint = f' fill="{fill}"' if fill else f' class="{kind}"'
    where = f'x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"'
    if not title:
        return f"<rect{paint} {where}/>"
    return f"<rect{paint} {where}><title>{escape(title)}</title></rect>"


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.2f}" y="{y:.2f}">{escape(text)}</text>'
