"""The trace of a simulation."""

from itertools import count
from typing import Any

from schedcc.trace.flows import Flows, Slices
from schedcc.trace.slices import Lane, TraceEvent, described, document, phase_of, transfer_bar
from schemas import BufferInstruction, Phase, Timeline


def simulated_trace(timeline: Timeline) -> dict[str, Any]:
    """The trace of a simulated plan."""
    events: list[TraceEvent] = []
    flows = Flows(
        {
            span.instruction.stage: stage.rank
            for stage in timeline.stages
            for span in stage.spans
            if isinstance(span.instruction, BufferInstruction)
        }
    )
    for stage in timeline.stages:
        lane = Lane(0, stage.rank, stage.stage_id is None)
        slices = Slices(lane)
        name = f"rank {stage.rank}" if stage.stage_id is None else f"stage {stage.stage_id}"
        events += lane.names("simulated", name)
        for number, span in enumerate(stage.spans):
            start, end = span.start * 1e6, span.end * 1e6
            posted = phase_of(span.instruction) is Phase.POST
            own = end > start and not posted
            flows.add(slices, span.instruction, own=own)
            if posted:  # its span lasts as long as the transfer
                events += transfer_bar(lane, span.instruction, number, start, end)
            elif own:
                about = described(lane, span.instruction, {"step": span.step})
                slices.add(start, end)
                events.append(lane.event("X", start, dur=end - start, **about))
    events += flows.events(count(1))
    return document(events)
