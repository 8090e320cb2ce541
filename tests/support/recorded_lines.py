"""Recordings written by hand; nothing here needs torch."""

import json
from pathlib import Path
from typing import Any

from schedcc.simulation.simulate import simulate
from schemas import Costs, PipelinePlan
from schemas.recording import rank_file

Line = dict[str, Any]
COSTS = Costs(forward=1.0, transfer=0.25)
SECOND = 10**9

CLOSE: Line = {"event": "close"}
BROKEN: Line = {
    "event": "error",
    "kind": "ValueError",
    "message": "broken",
    "traceback": "Traceback ...\nValueError: broken\n",
}
SYMPTOM: Line = {**BROKEN, "kind": "TransportError", "message": "peer lost", "symptom": True}


def header(number: int, ranks: int, **fields: Any) -> Line:
    return {
        "format": "schedcc.recording/1",
        "rank": number,
        "stage_id": number,
        "replica": 0,
        "stages": ranks,
        "version": "0.1.0",
        "host": "here",
        "pid": 1,
        "device": "cpu",
        "clock": "one",
        "wall_ns": 1_700_000_000 * SECOND,
        "monotonic_ns": 5 * SECOND,
        **fields,
    }


def lines_of_run(plan: PipelinePlan, rank: int, run: int = 0) -> list[Line]:
    """The lines of one rank's run, with the times of a simulation where the plan has one."""
    stage_plan = plan.rank(rank)
    spans = simulate(plan, COSTS).stages[rank].spans if _has_timeline(plan) else None
    offset_of_run = run * 1000 * SECOND
    fingerprint = stage_plan.fingerprint
    recorded = {"fingerprint": fingerprint, "plan": json.loads(stage_plan.model_dump_json())}
    lines: list[Line] = [
        {"event": "plan", "at": offset_of_run, **recorded},
        {"event": "run_start", "at": offset_of_run, "run": run, "fingerprint": fingerprint},
    ]
    at = offset_of_run
    for placed in stage_plan.program.placed():
        start, end = at + 1, at + 2
        if spans is not None:
            span = spans[placed.offset]
            start, end = (offset_of_run + round(t * SECOND) for t in (span.start, span.end))
        instruction = json.loads(placed.instruction.model_dump_json())
        at = max(start, end)
        lines.append(
            {
                "event": "start",
                "at": start,
                "offset": placed.offset,
                "step": placed.step,
                "instruction": instruction,
            }
        )
        lines.append({"event": "end", "at": end, "offset": placed.offset})
    lines.append({"event": "run_end", "at": at, "run": run})
    return lines


def until(lines: list[Line], entered: int, left: int) -> list[Line]:
    """The lines of a run that entered and left the instructions up to these offsets."""
    kept = []
    for line in lines:
        limit = {"start": entered, "end": left}.get(line["event"])
        if line["event"] == "run_end" or (limit is not None and line["offset"] > limit):
            continue
        kept.append(line)
    return kept


def write(directory: Path, number: int, ranks: int, lines: list[Line], **fields: Any) -> Path:
    """One rank's file; a line without a time has that of the line before it."""
    directory.mkdir(exist_ok=True)
    head = header(number, ranks, **fields)
    text, at = [json.dumps(head)], 0
    for line in lines:
        at = line.get("at", at)
        text.append(json.dumps({**line, "at": at}))
    file = directory / rank_file(head["rank"])
    file.write_text("\n".join(text) + "\n")
    return file


def write_all(directory: Path, plan: PipelinePlan, runs: int = 1) -> Path:
    """A healthy recording of all ranks of a plan."""
    for rank in range(plan.ranks):
        lines = [line for run in range(runs) for line in lines_of_run(plan, rank, run)]
        write(directory, rank, plan.ranks, [*lines, CLOSE])
    return directory


def _has_timeline(plan: PipelinePlan) -> bool:
    from schedcc import check

    return check(plan).ok
