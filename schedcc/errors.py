"""Errors that a caller of the compiler can cause."""


class ScheduleError(ValueError):
    """A schedule was asked for that cannot exist."""


class PlanFileError(ValueError):
    """A file is not a plan."""


class UnsoundPlanError(ValueError):
    """A plan was to be used that its checks refuse."""


def require_count(name: str, value: object, *, least: int = 1) -> int:
    """`value` if it is an integer of at least `least`.

    Raises:
        ScheduleError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ScheduleError(f"{name} is {value!r}, needed an integer of at least {least}")
    return value


def require_stage(stage_id: object, stages: int) -> int:
    """`stage_id` if it names one of `stages` stages.

    Raises:
        ScheduleError: it does not.
    """
    is_integer = isinstance(stage_id, int) and not isinstance(stage_id, bool)
    if not is_integer or not 0 <= stage_id < stages:  # type: ignore[operator]
        needed = "0" if stages == 1 else f"an integer from 0 to {stages - 1}"
        raise ScheduleError(f"stage_id is {stage_id!r}, needed {needed} (stages={stages})")
    return stage_id  # type: ignore[return-value]
