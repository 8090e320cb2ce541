"""What a test asserts of a plan or a schedule; a failure says what, where and under which model."""

from collections.abc import Iterable
from typing import TypedDict

import numpy as np

from schedcc.analysis.times import Backend
from schedcc.certify import check_schedule
from schedcc.compiler import compile_pipeline, required
from schedcc.derive.repetition import derived, repetition
from schedcc.errors import UnsoundPlanError
from schedcc.schedules import Schedule
from schedcc.testing.executor import FailedError, execute
from schedcc.testing.strategies import TRANSPORT_MODELS
from schedcc.verify import verdict
from schemas import PipelinePlan, TransportModel


class _Size(TypedDict):
    schedule: Schedule
    ranks: int


def assert_executes(
    plan: PipelinePlan, transports: Iterable[TransportModel] = TRANSPORT_MODELS
) -> None:
    """Execute a plan under models of the transport (default: all without barriers).

    Raises:
        AssertionError: under one of them it gets stuck, or computes a wrong value.
    """
    for transport in transports:
        failed = failure(plan, transport)
        assert failed is None, f"{_named(plan)} fails: {failed} ({failed.kind}; {transport})"


def assert_agreement(plan: PipelinePlan, transport: TransportModel, backend: Backend) -> str:
    """Compare the checker's verdict on a plan with its execution; the verdict.

    Args:
        plan: Any plan.
        transport: What its transfers may rely on.
        backend: With which the checker comes to its verdict.

    Returns:
        `sound`, or the kind of the first failure.

    Raises:
        AssertionError: checker and executor disagree, about the verdict or about its kind.
    """
    failed, report = failure(plan, transport), verdict(plan, transport, backend)
    codes = {finding.code.value for finding in report.errors()}
    agreed = report.ok == (failed is None) and (failed is None or failed.kind in codes)
    executed = f"{failed.kind}: {failed}" if failed else "sound"
    checked = ", ".join(sorted(codes)) or "sound"
    assert agreed, (
        f"the executor says {executed}, the checker {checked} ({transport}; {backend}): "
        f"{plan.model_dump_json()}"
    )
    return "sound" if failed is None else failed.kind


def assert_sound(
    schedule: str | Schedule, micro_batches: int, stages: int, ranks: int | None = None
) -> None:
    """Compile a schedule in both variants, check it and execute it under every transport model.

    The blocking variant also with a barrier after each step. A schedule that promises a period
    keeps it: what is made from a short version is what is derived at full length.

    Args:
        schedule: The name of a schedule, or a value of one's own.
        micro_batches: M.
        stages: S.
        ranks: R; default: one for each stage.

    Raises:
        AssertionError: one of it fails; the message says which, and how.
        ScheduleError: the schedule does not exist for these sizes, or makes no sense.
    """
    value, ranks = required(micro_batches, stages, schedule, ranks)
    size: _Size = {"schedule": value, "ranks": ranks}
    for overlap in (False, True):
        _assert_period(value, micro_batches, stages, ranks, overlap)
        try:
            plan = compile_pipeline(micro_batches, stages, overlap=overlap, **size)
        except UnsoundPlanError as error:
            raise AssertionError(f"{value.name} has findings: {error}") from error
        assert_executes(plan)
        if not overlap:
            assert_executes(plan, [_with_barriers(model) for model in TRANSPORT_MODELS])
        # What is sound under the strictest model is sound under the others.
        strictest = TransportModel(step_barrier=not overlap)
        report = check_schedule(micro_batches, stages, overlap=overlap, transport=strictest, **size)
        found = "; ".join(map(str, report.errors()))
        assert report.ok, f"{_named(plan)} has findings ({strictest}): {found}"


def _with_barriers(model: TransportModel) -> TransportModel:
    return model.model_copy(update={"step_barrier": True})


def failure(plan: PipelinePlan, transport: TransportModel) -> FailedError | None:
    """What goes wrong when a plan is executed, or `None`."""
    try:
        execute(plan, transport)
    except FailedError as error:
        return error
    return None


def _assert_period(
    schedule: Schedule, micro_batches: int, stages: int, ranks: int, overlap: bool
) -> None:
    found = repetition(schedule, micro_batches, stages, ranks, overlap=overlap)
    if found is None:
        return
    whole = derived(schedule, micro_batches, stages, ranks, overlap=overlap)
    for rank, rows in enumerate(whole.rows):
        made = found.rows(rank)
        same = len(rows) == len(made) and all(
            np.array_equal(a, b) for a, b in zip(rows.columns, made.columns, strict=True)
        )
        assert same, (
            f"{schedule.name} with M = {micro_batches}, S = {stages}, R = {ranks} does not keep "
            f"its period: the program of rank {rank} is another at full length"
        )


def _named(plan: PipelinePlan) -> str:
    sizes = f"M = {plan.micro_batches}, S = {plan.stages}, R = {plan.ranks}"
    return f"the plan of {plan.schedule!r} for {sizes}"
