"""Emulated devices and links: threads of one process, and messages that take their time.

Neither a stage nor a message uses the processor, so that four and more stages can be measured where
there are two cores. What is measured is the order of the plan and the overhead of the runtime; the
compiler's simulation predicts it.
"""

import time
from collections.abc import Callable

import schedcc
from benchmarks.own import Own
from benchmarks.processes import require_same
from benchmarks.results import ONE_PROCESS, OWN_BLOCKING, OWN_OVERLAPPED
from benchmarks.settings import Setting
from benchmarks.workload import Evaluated, Workload, seconds_of
from runtime.testing import InMemoryTransport, Link, run_stages
from schemas import Costs, PipelinePlan, TransportModel

FORMS = {OWN_BLOCKING: False, OWN_OVERLAPPED: True}


def measure_links(setting: Setting, repeats: int) -> dict[str, list[float]]:
    """Seconds of one process and of both forms, by name; the repeats are interleaved."""
    workload = Workload.of(setting, 1)
    expected = workload.one_process(keep_logits=True)

    def stage(end: InMemoryTransport) -> dict[str, list[float]]:
        contenders = {name: Own(workload, overlap, end) for name, overlap in FORMS.items()}
        for name, contender in contenders.items():
            found = contender(keep_logits=True)
            if end.stage_id == end.stages - 1:
                require_same(name, found, expected)
            contender()  # once as it will be timed
        return {
            name: [_seconds(end, contender) for _ in range(repeats)]
            for name, contender in contenders.items()
        }

    timings = run_stages(
        setting.stages,
        stage,
        queue="channel",
        link=Link(seconds=setting.transfer_seconds),
        timeout=600.0,
    )[0]
    one_process = seconds_of(lambda: workload.one_process(keep_logits=False))
    return {ONE_PROCESS: [one_process], **timings}


def predict(setting: Setting, forward: float) -> dict[str, float]:
    """Seconds that the compiler's simulation gives both forms, where a forward takes `forward`."""
    plans = {
        name: schedcc.compile_pipeline(setting.micro_batches, setting.stages, overlap=overlap)
        for name, overlap in FORMS.items()
    }
    return {name: predicted(plan, forward, setting) for name, plan in plans.items()}


def predicted(plan: PipelinePlan, forward: float, setting: Setting) -> float:
    """The makespan of a plan on emulated links."""
    costs = Costs(forward=forward, transfer=setting.transfer_seconds)
    return schedcc.simulate(plan, costs, TransportModel(queue="channel")).makespan


def _seconds(end: InMemoryTransport, contender: Callable[[], Evaluated | None]) -> float:
    end.gather_objects(None)
    start = time.perf_counter()
    contender()
    spans = end.gather_objects((start, time.perf_counter()))
    return float(max(end for _, end in spans) - min(start for start, _ in spans))
