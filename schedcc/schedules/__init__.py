"""Schedules: on which rank each stage is, and which forwards which micro-batch at which step.

A new schedule is a file here and a place in `_SHIPPED`; a user's own value needs neither.
"""

from schedcc.errors import ScheduleError
from schedcc.schedules.inference import Inference
from schedcc.schedules.interleaved import Interleaved
from schedcc.schedules.schedule import Period, Schedule
from schedcc.schedules.v_shape import VShape

_SHIPPED: dict[Schedule, str] = {
    Inference(): "One stage on each rank: GPipe's fill and drain, forward only (in DeepSpeed "
    "InferenceSchedule). M + S - 1 steps, two buffers.",
    Interleaved(): "Stages r, r + R, r + 2R, ... on rank r: the forwards of Megatron-LM's "
    "interleaved schedule (virtual pipeline stages). Fills in less time, sends more messages.",
    Interleaved("interleaved_wide", group=2): "The same with groups of 2R micro-batches, so that "
    "transfers around the ring cross the forwards. 2R buffers a stage.",
    VShape(): "Stages r and 2R - 1 - r on rank r, the placement of ZB-V: inputs, labels, loss and "
    "logits meet on rank 0.",
}

SCHEDULES: tuple[Schedule, ...] = tuple(_SHIPPED)
"""Those that have a name on the command line."""

SUMMARIES = {schedule.name: summary for schedule, summary in _SHIPPED.items()}
"""What each of them is, and what others call it."""


def find_schedule(schedule: str | Schedule) -> Schedule:
    """The schedule of a name, or the value that it is already.

    Raises:
        ScheduleError: there is no schedule of this name, or the value is none.
    """
    if isinstance(schedule, str):
        for known in SCHEDULES:
            if known.name == schedule:
                return known
        names = ", ".join(repr(known.name) for known in SCHEDULES)
        raise ScheduleError(
            f"schedule is {schedule!r}, needed one of {names}, or in Python a schedule of your own"
        )
    if isinstance(schedule, type):
        raise ScheduleError(
            f"schedule is the class {schedule.__name__}, needed a value: {schedule.__name__}()"
        )
    for attribute in ("name", "placement", "forwards"):
        if not hasattr(schedule, attribute):
            raise ScheduleError(
                f"schedule is {schedule!r}, needed a name or a value with 'name', 'placement' and "
                "'forwards'"
            )
    return schedule


__all__ = ["SCHEDULES", "SUMMARIES", "Period", "Schedule", "find_schedule"]
