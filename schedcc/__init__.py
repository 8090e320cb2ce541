"""A compiler and verifier for forward-only pipeline-parallel schedules.

>>> import schedcc
>>> plan = schedcc.compile_pipeline(micro_batches=4, stages=3)
>>> schedcc.check(plan).ok
True
"""

from schedcc import _modules as _modules  # first: it says so where another module hides ours
from schedcc.analysis.graph import dependency_graph
from schedcc.analysis.simulate import simulate
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
