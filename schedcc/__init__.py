"""A compiler and verifier for forward-only pipeline-parallel schedules.

>>> import schedcc
>>> plan = schedcc.compile_pipeline(micro_batches=4, stages=3)
>>> schedcc.check(plan).ok
True
"""

from importlib import import_module
from typing import TYPE_CHECKING

from schedcc import _modules as _modules  # first: it says so where another module hides ours

if TYPE_CHECKING:
    from schedcc.analysis.graph import dependency_graph
    from schedcc.certify import check_schedule
    from schedcc.compiler import (
        compile_epilogue,
        compile_pipeline,
        compile_stage,
        iter_steps,
        require_sound,
    )
    from schedcc.errors import PlanFileError, ScheduleError, UnsoundPlanError
    from schedcc.schedules import SCHEDULES, Period, Schedule
    from schedcc.schedules.epilogue import Outcome
    from schedcc.simulation.simulate import simulate
    from schedcc.verify import check
    from schemas import Costs, Finding, PipelinePlan, Report, StagePlan, Timeline, TransportModel

__version__ = "0.1.0"

__all__ = [
    "SCHEDULES",
    "Costs",
    "Finding",
    "Outcome",
    "Period",
    "PipelinePlan",
    "PlanFileError",
    "Report",
    "Schedule",
    "ScheduleError",
    "StagePlan",
    "Timeline",
    "TransportModel",
    "UnsoundPlanError",
    "check",
    "check_schedule",
    "compile_epilogue",
    "compile_pipeline",
    "compile_stage",
    "dependency_graph",
    "iter_steps",
    "require_sound",
    "simulate",
]

# Imported when they are asked for: the command line can then be interrupted while it starts.
_FOUND_IN = {
    "check": "schedcc.verify",
    "check_schedule": "schedcc.certify",
    "compile_epilogue": "schedcc.compiler",
    "compile_pipeline": "schedcc.compiler",
    "compile_stage": "schedcc.compiler",
    "Costs": "schemas",
    "dependency_graph": "schedcc.analysis.graph",
    "Finding": "schemas",
    "iter_steps": "schedcc.compiler",
    "Outcome": "schedcc.schedules.epilogue",
    "Period": "schedcc.schedules",
    "PipelinePlan": "schemas",
    "PlanFileError": "schedcc.errors",
    "Report": "schemas",
    "require_sound": "schedcc.compiler",
    "Schedule": "schedcc.schedules",
    "ScheduleError": "schedcc.errors",
    "SCHEDULES": "schedcc.schedules",
    "simulate": "schedcc.simulation.simulate",
    "StagePlan": "schemas",
    "Timeline": "schemas",
    "TransportModel": "schemas",
    "UnsoundPlanError": "schedcc.errors",
}


def __getattr__(name: str) -> object:
    if name not in _FOUND_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_FOUND_IN[name]), name)
    import_module("schemas.display").display_by(_notebook_html)
    globals()[name] = value
    return value


def _notebook_html(value: object) -> object:
    """What a notebook shows; the pictures are imported only there."""
    return import_module("schedcc.pictures.notebook").notebook_html(value)


def __dir__() -> list[str]:
    return sorted({*globals(), *_FOUND_IN})
