"""Emulated devices and links: threads of one process, and messages that take their time.

Neither a stage nor a message uses the processor, so that four and more stages can be measured where
there are two cores. What is measured is the order of the plan and the overhead of the runtime; the
compiler's simulation predicts it.
"""

import time
from collections.abc import Callable, Mapping

import schedcc
from benchmarks.contenders.own import Own
from benchmarks.processes import require_same
from benchmarks.report.results import ONE_PROCESS, OWN_BLOCKING, OWN_OVERLAPPED
from benchmarks.settings import Setting
from benchmarks.workload import Evaluated, Workload, seconds_of
from runtime.testing import InMemoryTransport, Link, run_threads
from schemas import Costs, PipelinePlan, TransportModel

FORMS = {OWN_BLOCKING: False, OWN_OVERLAPPED: True}


Contender = Callable[..., Evaluated | None]
"""`(*, keep_logits=False)`: evaluates all micro-batches; the last stage has what comes of it."""


def measure_links(setting: Setting, repeats: int) -> dict[str, list[float]]:
    """Seconds of one process and of both forms, by name; the repeats are interleaved."""
    workload = Workload.of(setting, 1)
    expected = workload.one_process(keep_logits=True)
    timings = timed_over_links(
        setting,
        lambda end: {name: Own(workload, overlap, end) for name, overlap in FORMS.items()},
        dict.fromkeys(FORMS, expected),
        repeats,
    )
    one_process = seconds_of(lambda: workload.one_process(keep_logits=False))
    return {ONE_PROCESS: [one_process], **timings}


def timed_over_links(
    setting: Setting,
    contenders_of: Callable[[InMemoryTransport], Mapping[str, Contender]],
    expected: Mapping[str, Evaluated],
    repeats: int,
) -> dict[str, list[float]]:
    """Seconds of each contender over emulated links, by name; the repeats are interleaved.

    Args:
        setting: Ranks, and the seconds of a transfer.
        contenders_of: Those of a rank.
        expected: What each of them has to give first.
        repeats: How often each is timed.
    """

    def rank(end: InMemoryTransport) -> tuple[dict[str, list[float]], set[str]]:
        contenders, verified = contenders_of(end), set[str]()
        for name, contender in contenders.items():
            found = contender(keep_logits=True)
            if found is not None:
                require_same(name, found, expected[name])
                verified.add(name)
            contender()  # once as it will be timed
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(repeats):
            for name, contender in contenders.items():
                seconds[name].append(_seconds(end, contender))
        return seconds, verified

    found = run_threads(
        setting.stages,
        rank,
        queue="channel",
        link=Link(seconds=setting.transfer_seconds),
        timeout=600.0,
    )
    assert set().union(*(verified for _, verified in found)) == set(expected)
    return found[0][0]


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


def _seconds(end: InMemoryTransport, contender: Contender) -> float:
    end.gather_objects(None)
    start = time.perf_counter()
    contender()
    spans = end.gather_objects((start, time.perf_counter()))
    return float(max(end for _, end in spans) - min(start for start, _ in spans))
