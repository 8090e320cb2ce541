"""The trace of a simulation."""

from typing import Any

from schedcc.trace.slices import Lane, TraceEvent, described, document, phase_of, transfer_bar
from schemas import Phase, Timeline


def simulated_trace(timeline: Timeline) -> dict[str, Any]:
    """The trace of a simulated plan."""
    events: list[TraceEvent] = []
    for stage in timeline.stages:
        lane = Lane(0, stage.rank, stage.stage_id is None)
        name = f"rank {stage.rank}" if stage.stage_id is None else f"stage {stage.stage_id}"
        events += lane.names("simulated", name)
        for number, span in enumerate(stage.spans):
            start, end = span.start * 1e6, span.end * 1e6
            about = described(lane, span.instruction, {"step": span.step})
            if phase_of(span.instruction) is Phase.POST:  # its span lasts as long as the transfer
                events += transfer_bar(lane, span.instruction, number, start, end)
            elif end > start:
                events.append(lane.event("X", start, dur=end - start, **about))
    return document(events)
