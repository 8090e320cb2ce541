"""The data of a page: what its script draws, as JSON.

Columns instead of objects: a few hundred thousand instructions are read in a fraction of a second.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from schedcc.io.picture import SYMBOLS
from schedcc.pictures.colours import is_dark, stage_colours
from schedcc.pictures.panel import Panel
from schedcc.table.codes import IS_BUFFER, IS_FORWARD, IS_PAIRED, IS_POST, IS_SEND, OPS

FORMAT = "schedcc.picture/1"


def kind_of(code: int) -> str:
    """How an instruction is drawn, by its code."""
    if IS_FORWARD[code]:
        return "forward"
    if IS_PAIRED[code]:
        kind = "send" if IS_SEND[code] else "receive"
        return f"post-{kind}" if IS_POST[code] else kind
    return "load" if OPS[code].__name__ == "LoadMicroBatch" else "other"


def symbol_of(code: int) -> str:
    """What stands in a box, in front of its micro-batch; nothing for what is of no step."""
    return SYMBOLS.get(OPS[code].__name__, ("", ""))[0] if IS_BUFFER[code] else ""


def content(title: str, panels: Sequence[Panel]) -> dict[str, Any]:
    """All that a page shows."""
    return {
        "format": FORMAT,
        "title": title,
        "ops": [
            {"name": op.__name__, "symbol": symbol_of(code), "kind": kind_of(code)}
            for code, op in enumerate(OPS)
        ],
        "colours": [
            {"stage": stage, "fill": colour, "dark": is_dark(colour)}
            for stage, colour in colours_of(panels).items()
        ],
        "panels": [_panel(panel) for panel in panels],
    }


def colours_of(panels: Sequence[Panel]) -> dict[int, str]:
    """The colour of each stage, the same in all panels."""
    return stage_colours(sorted({stage for panel in panels for stage in panel.stages}))


def rank_name(panel: Panel, rank: int) -> str:
    """A rank as it is called beside its band."""
    return f"{panel.unit_of_rank} {rank}"


def _panel(panel: Panel) -> dict[str, Any]:
    table, boxes, arrows = panel.boxes.table, panel.boxes, panel.arrows
    bounds = np.searchsorted(table.rank, [*panel.ranks, np.iinfo(np.int64).max]).tolist()
    rows = table.rows
    names = ("op", "stage", "micro_batch", "buffer", "peer", "step")
    spent = panel.breakdown
    return {
        "title": panel.title,
        "note": panel.note,
        "unit": panel.unit,
        "length": panel.length,
        "unit_of_rank": panel.unit_of_rank,
        "ranks": [
            {
                "rank": rank,
                "name": rank_name(panel, rank),
                "first": first,
                "stop": stop,
                "stages": [s for s in np.unique(rows.stage[first:stop]).tolist() if s >= 0],
            }
            for rank, first, stop in zip(panel.ranks, bounds[:-1], bounds[1:], strict=True)
        ],
        "columns": {
            **{name: getattr(rows, name).tolist() for name in names},
            **({"run": boxes.run.tolist()} if boxes.run.any() else {}),
            "start": boxes.start.tolist(),
            "end": boxes.end.tolist(),
        },
        "arrows": {
            "send": arrows.send.tolist(),
            "receive": arrows.receive.tolist(),
            "end": arrows.end.tolist(),
        },
        "phases": [phase._asdict() for phase in panel.phases],
        "marks": [mark._asdict() for mark in panel.marks],
        "breakdown": None if spent is None else spent.model_dump(mode="json"),
    }
