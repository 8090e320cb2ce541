"""Simulation: an event-driven oracle, closed forms, and what any timeline must obey."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from itertools import count, pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from schedcc import UnsoundPlanError, check, compile_pipeline, simulate
from schedcc.testing.plans import pipeline
from schedcc.testing.strategies import at_corners, grouped_transfers, sizes
from schemas import Costs, PipelinePlan, SingleCost, Timeline, TransportModel, json_schemas

PER_CHANNEL = TransportModel(queue="channel")
EVERY_MODEL = [
    TransportModel(queue=queue, buffered_sends=buffered)
    for queue in ("stage", "channel")
    for buffered in (0, 1, 2)
]
QUEUES = {"stage": TransportModel(), "channel": PER_CHANNEL}

# Eighths add up exactly in binary, so results are compared exactly.
seconds = st.integers(0, 24).map(lambda eighths: eighths / 8)
Spans = dict[tuple[int, int], list[float]]


class EventDriven:
    """A world of stages that take turns on a clock; two transfers meet at the heads of queues."""

    def __init__(self, plan: PipelinePlan, forward: tuple[float, ...], transfer: float, queue: str):
        self.plan, self.queue = plan, queue
        self.costs = Costs(forward=forward, transfer=transfer)
        self.now, self.number = 0.0, count()
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.queues: defaultdict[tuple, list[dict]] = defaultdict(list)
        self.entered: list[Iterator] = []
        self.spans: Spans = {}

    def run(self) -> Spans:
        for program in self.plan.programs:
            self.resume(self.stage(program.rank, [p.instruction for p in program.placed()]))
        while self.agenda:
            self.now, _, action = heappop(self.agenda)
            action()
        return self.spans

    def takes(self, what: str, stage_id: int, micro_batch: int) -> float:
        for single in reversed(self.costs.single):
            if (single.of, single.micro_batch) == (what, micro_batch) and (
                single.stage_id in (None, stage_id)
            ):
                return single.seconds
        seconds = getattr(self.costs, what)
        return seconds[stage_id] if isinstance(seconds, tuple) else seconds

    def later(self, delay: float, action: Callable[[], None]) -> None:
        heappush(self.agenda, (self.now + delay, next(self.number), action))

    def stage(self, stage_id: int, instructions: list) -> Iterator:
        posted = {}
        for offset, i in enumerate(instructions):
            span = self.spans[stage_id, offset] = [self.now, -1.0]
            if i.op == "ForwardPass":
                yield "sleep", self.takes("forward", stage_id, i.micro_batch)
            elif i.op == "LoadMicroBatch":
                yield "sleep", self.takes("load", stage_id, i.micro_batch)
            elif i.op == "BroadcastLoss":
                yield "meet", None
            elif i.op in ("AllReduceLoss", "AllReduceMetrics"):
                yield "sleep", self.costs.collective
            elif i.op.startswith("Wait"):
                yield "end", posted.pop(("Send" in i.op, i.micro_batch))
            elif "Activation" in i.op:
                key = (stage_id, "Send" in i.op, i.peer)
                end = {"key": key, "span": span, "moving": False, "done": False, "waiter": None}
                end["micro_batch"] = i.micro_batch
                self.queue_of(*key).append(end)
                self.match()
                if i.op.startswith("Post"):
                    posted["Send" in i.op, i.micro_batch] = end
                    continue
                yield "end", end
            span[1] = self.now

    def resume(self, stage: Iterator) -> None:
        for request, subject in stage:
            if request == "sleep":
                self.later(subject, lambda: self.resume(stage))
                return
            if request == "meet":
                self.entered.append(stage)
                if len(self.entered) == self.plan.stages:
                    for member in self.entered:
                        self.later(self.costs.collective, lambda member=member: self.resume(member))
                    self.entered = []
                return
            if not subject["done"]:
                subject["waiter"] = stage
                return

    def queue_of(self, stage_id: int, sends: bool, peer: int) -> list[dict]:
        return self.queues[(stage_id, sends, peer) if self.queue == "channel" else (stage_id,)]

    def match(self) -> None:
        for queue in list(self.queues.values()):
            if not queue or queue[0]["moving"] or not queue[0]["key"][1]:
                continue
            send, (source, _, target) = queue[0], queue[0]["key"]
            other = self.queue_of(target, False, source)
            if other and other[0]["key"] == (target, False, source):
                send["moving"] = other[0]["moving"] = True
                ends = (send, other[0])
                seconds = self.takes("transfer", source, send["micro_batch"])
                self.later(seconds, lambda ends=ends: self.arrive(ends))

    def arrive(self, ends: tuple[dict, dict]) -> None:
        for end in ends:
            assert self.queue_of(*end["key"]).pop(0) is end
            end["done"], end["span"][1] = True, self.now
        self.match()
        for end in ends:
            if end["waiter"]:
                self.resume(end["waiter"])


WEAKER = [
    tuple(TransportModel(queue=queue, buffered_sends=count) for queue, count in pair)
    for pair in (
        (("stage", 0), ("channel", 0)),
        (("stage", 1), ("channel", 1)),
        (("stage", 0), ("stage", 1)),
        (("stage", 1), ("stage", 2)),
        (("stage", 2), ("stage", 9)),
        (("channel", 0), ("channel", 1)),
        (("channel", 1), ("channel", 2)),
        (("stage", 0), ("channel", 2)),
    )
]


@settings(max_examples=50)
@given(
    plan=grouped_transfers()
    | st.builds(compile_pipeline, st.integers(1, 6), st.integers(1, 5), overlap=st.booleans()),
    transfer=seconds,
    forwards=st.lists(seconds, min_size=8, max_size=8),
)
def test_no_plan_takes_longer_under_a_weaker_model(plan, transfer, forwards):
    costs = Costs(forward=tuple(forwards[: plan.stages]), transfer=transfer)
    for stronger, weaker in WEAKER:
        if not check(plan, stronger).ok:
            continue
        before, after = (simulate(plan, costs, model) for model in (stronger, weaker))
        assert after.makespan <= before.makespan, (stronger, weaker)
        for stage, own in zip(before.stages, after.stages, strict=True):
            for span, earlier in zip(stage.spans, own.spans, strict=True):
                assert earlier.start <= span.start
                assert earlier.end <= span.end


@pytest.mark.parametrize("model", EVERY_MODEL, ids=str)
def test_members_of_a_group_travel_together_under_every_model(model):
    plan = pipeline(
        "L0 F0 L1 F1 { s>0 s>1 } s.0 s.1",
        "{ r<0 r<1 } r.0 L0 F0 r.1 L1 F1",
        micro_batches=2,
    )
    assert simulate(plan, Costs(forward=1.0, transfer=10.0), model).makespan == 14.0


@settings(max_examples=50)
@given(plan=grouped_transfers())
def test_pipelines_in_groups_are_sound(plan):
    assert check(plan).ok


def spans(timeline: Timeline) -> Spans:
    return {
        (stage.stage_id, offset): [span.start, span.end]
        for stage in timeline.stages
        for offset, span in enumerate(stage.spans)
    }


@st.composite
def cases(draw: st.DrawFn, sizes: st.SearchStrategy = sizes(8, 6)) -> tuple[PipelinePlan, Costs]:  # noqa: B008
    """A compiled plan of any form and size, and costs of each stage."""
    micro_batches, stages = draw(sizes)
    forward = draw(st.tuples(*[seconds] * stages))
    plan = compile_pipeline(micro_batches, stages, overlap=draw(st.booleans()))
    return plan, Costs(forward=forward, transfer=draw(seconds))


corners = st.sampled_from([(1, 1), (4, 1), (1, 4), (2, 5)])


@settings(max_examples=60)
@given(case=cases() | cases(corners), queue=st.sampled_from(["stage", "channel"]))
def test_every_span_is_that_of_an_event_driven_simulation(case, queue):
    plan, costs = case
    timeline = simulate(plan, costs, QUEUES[queue])
    expected = EventDriven(plan, costs.forward, costs.transfer, queue).run()
    assert spans(timeline) == expected
    assert timeline.makespan == max(end for _, end in expected.values())


singles = st.lists(
    st.builds(
        SingleCost,
        of=st.sampled_from(["forward", "transfer", "load"]),
        micro_batch=st.integers(0, 5),
        stage_id=st.none() | st.integers(0, 4),
        seconds=seconds,
    ),
    max_size=4,
).map(tuple)


@settings(max_examples=60)
@given(case=cases() | cases(corners), queue=st.sampled_from(["stage", "channel"]), data=st.data())
def test_costs_of_every_kind_are_those_of_an_event_driven_simulation(case, queue, data):
    plan, costs = case
    edges = plan.stages - 1
    all_costs = Costs(
        forward=costs.forward,
        transfer=data.draw(st.lists(seconds, min_size=edges, max_size=edges).map(tuple) | seconds),
        load=data.draw(seconds),
        collective=data.draw(seconds),
        single=data.draw(singles),
    )
    world = EventDriven(plan, costs.forward, 0.0, queue)
    world.costs = all_costs
    timeline = simulate(plan, all_costs, QUEUES[queue])
    assert spans(timeline) == world.run()
    assert timeline.makespan >= timeline.ideal
    assert Costs.model_validate_json(all_costs.model_dump_json()) == all_costs


def test_each_kind_of_cost_is_where_it_belongs():
    """M = 2, S = 2, by hand: load, forward, send; receive, load, forward; then the broadcast.

    Stage 0: load 0-1, forward 1-2; load 2-3, send 0 for 0.5, forward 1 until 5.5, send 1 for 4.
    """
    costs = Costs(
        forward=1.0,
        transfer=(0.5,),
        load=1.0,
        collective=0.25,
        single=(
            SingleCost(of="forward", micro_batch=1, stage_id=0, seconds=2.0),
            SingleCost(of="transfer", micro_batch=1, seconds=4.0),
            SingleCost(of="load", micro_batch=1, stage_id=1, seconds=0.0),
        ),
    )
    found = spans(simulate(compile_pipeline(2, 2), costs))
    first = [found[0, offset] for offset in range(7)]
    assert first == [[0, 1], [1, 2], [2, 3], [3, 3.5], [3.5, 5.5], [5.5, 9.5], [9.5, 10.75]]
    second = [found[1, offset] for offset in range(8)]
    assert second == [
        *([0, 1], [1, 3.5], [3.5, 4.5], [4.5, 4.5], [4.5, 9.5], [9.5, 10.5], [10.5, 10.5]),
        [10.5, 10.75],
    ]


@pytest.mark.parametrize("transfer", [(), (1.0, 1.0, 1.0)])
def test_costs_of_another_number_of_boundaries_are_refused(transfer):
    needed = f"transfer lists {len(transfer)} costs, needed a single number or a list of 2 "
    with pytest.raises(ValueError, match=f"^{re.escape(needed)}"):
        simulate(compile_pipeline(2, 3), Costs(transfer=transfer))


def test_the_event_driven_simulation_knows_a_queue_per_stage_from_one_per_channel():
    plan = compile_pipeline(4, 3, overlap=True)
    found = [EventDriven(plan, (1.0,) * 3, 1.0, queue).run() for queue in QUEUES]
    assert [max(end for _, end in s.values()) for s in found] == [10.0, 8.0]


@pytest.mark.parametrize(
    ("overlap", "queue", "makespan"),
    [(False, "stage", 99.5), (False, "channel", 99.5), (True, "stage", 67.75)],
)
def test_sixty_four_micro_batches_on_four_stages(overlap, queue, makespan):
    plan = compile_pipeline(64, 4, overlap=overlap)
    assert simulate(plan, Costs(transfer=0.25), QUEUES[queue]).makespan == makespan


@at_corners(forward=2.0, fraction=8)
@settings(max_examples=60)
@given(size=sizes(), forward=seconds, fraction=st.integers(0, 8))
def test_a_queue_per_channel_hides_all_transfers_but_the_first_of_each_stage(
    size, forward, fraction
):
    micro_batches, stages = size
    transfer = forward * fraction / 8
    plan = compile_pipeline(*size, overlap=True)
    found = simulate(plan, Costs(forward=forward, transfer=transfer), PER_CHANNEL)
    assert found.makespan == (micro_batches + stages - 1) * forward + (stages - 1) * transfer


@at_corners(overlap=True, queue="stage")
@settings(max_examples=40)
@given(size=sizes(), overlap=st.booleans(), queue=st.sampled_from(["stage", "channel"]))
def test_without_transfers_only_filling_and_draining_is_idle(size, overlap, queue):
    micro_batches, stages = size
    plan = compile_pipeline(*size, overlap=overlap)
    found = simulate(plan, Costs(forward=0.5), QUEUES[queue])
    steps = micro_batches + stages - 1
    assert found.makespan == found.ideal == steps * 0.5
    assert found.bubble == pytest.approx((stages - 1) / steps, abs=1e-12)
    assert found.ideal_bubble == (stages - 1) / steps


@settings(max_examples=60)
@given(case=cases() | cases(corners), model=st.sampled_from(list(QUEUES.values())))
def test_no_plan_is_faster_than_the_sum_of_stages_and_the_slowest_again(case, model):
    plan, costs = case
    timeline = simulate(plan, costs, model)
    slowest = max(costs.forward)
    assert timeline.ideal == sum(costs.forward) + (plan.micro_batches - 1) * slowest
    assert timeline.makespan >= timeline.ideal


@pytest.mark.parametrize("overlap", [False, True])
def test_a_stage_alone_is_never_idle(overlap):
    found = simulate(compile_pipeline(5, 1, overlap=overlap), Costs(forward=(0.5,), transfer=9))
    (stage,) = found.stages
    assert (found.makespan, found.bubble, found.ideal, found.ideal_bubble) == (2.5, 0, 2.5, 0)
    assert (stage.busy, stage.idle, stage.peak_bytes) == (2.5, 0, 0)


@settings(max_examples=60)
@given(case=cases() | cases(corners), model=st.sampled_from(list(QUEUES.values())))
def test_any_timeline_keeps_the_order_of_things(case, model):
    plan, costs = case
    timeline = simulate(plan, costs, model)
    arrived = {}
    for stage in timeline.stages:
        for before, after in pairwise(stage.spans):
            posted = before.instruction.op.startswith("Post")
            assert (before.start if posted else before.end) <= after.start
        for span in stage.spans:
            assert 0 <= span.start <= span.end <= timeline.makespan
            name, what = span.instruction.op, getattr(span.instruction, "micro_batch", None)
            if name in ("RecvActivation", "WaitRecvActivation"):
                arrived[stage.stage_id, what] = span.end
            elif name == "ForwardPass":
                assert span.start >= arrived.get((stage.stage_id, what), 0)
    assert len(arrived) == (plan.stages - 1) * plan.micro_batches


@settings(max_examples=60)
@given(case=cases() | cases(corners), model=st.sampled_from(list(QUEUES.values())))
def test_a_stage_is_busy_or_idle(case, model):
    plan, costs = case
    timeline = simulate(plan, costs, model)
    for stage, forward in zip(timeline.stages, costs.forward, strict=True):
        assert stage.busy == plan.micro_batches * forward
        assert stage.busy + stage.idle == timeline.makespan
        assert stage.idle >= 0
    total = plan.stages * timeline.makespan
    idle = sum(stage.idle for stage in timeline.stages)
    assert timeline.bubble == (idle / total if total else 0)


@settings(max_examples=60)
@given(case=cases(), model=st.sampled_from(["stage", "channel"]), buffered=st.integers(0, 2))
def test_a_laxer_transport_never_costs_time(case, model, buffered):
    plan, costs = case
    strict = simulate(plan, costs, QUEUES[model]).makespan
    for queue in {model, "channel"}:
        laxer = TransportModel(queue=queue, buffered_sends=buffered)
        assert simulate(plan, costs, laxer).makespan <= strict


def peaks(plan: PipelinePlan, **costs: object) -> list[int]:
    found = simulate(plan, Costs(activation_bytes=1, **costs))
    return [stage.peak_bytes for stage in found.stages]


@pytest.mark.parametrize("micro_batches", [2, 4, 20])
def test_what_a_stage_holds_does_not_depend_on_the_number_of_micro_batches(micro_batches):
    assert peaks(compile_pipeline(micro_batches, 3), transfer=0.25) == [1, 2, 1]
    overlapped = compile_pipeline(micro_batches, 3, overlap=True)
    assert peaks(overlapped, transfer=0.25) == [2, 4 if micro_batches > 2 else 3, 2]


@at_corners(forward=0.0, transfer=0.0, overlap=False)
@at_corners(forward=0.0, transfer=0.0, overlap=True)
@example(size=(4, 3), forward=1.0, transfer=0.0, overlap=True)
@settings(max_examples=40)
@given(size=sizes(), forward=seconds, transfer=seconds, overlap=st.booleans())
def test_what_a_stage_holds_depends_on_its_program_and_not_on_seconds(
    size, forward, transfer, overlap
):
    plan = compile_pipeline(*size, overlap=overlap)
    found = peaks(plan, forward=forward, transfer=transfer)
    assert found == peaks(plan, forward=1.0, transfer=0.25)
    assert max(found) <= (4 if overlap else 2)
    assert min(found) >= (1 if size[1] > 1 else 0)


def test_peak_bytes_are_those_of_activations():
    found = simulate(compile_pipeline(4, 3), Costs(activation_bytes=100))
    assert [stage.peak_bytes for stage in found.stages] == [100, 200, 100]


def test_a_transfer_takes_its_latency_and_its_bytes():
    assert Costs(transfer=0.5, activation_bytes=100, bandwidth=200).transfer_seconds == 1.0
    assert Costs(transfer=0.5, activation_bytes=100).transfer_seconds == 0.5
    assert Costs(bandwidth=200).transfer_seconds == 0.0
    costs = Costs(activation_bytes=100, bandwidth=400)
    plan = compile_pipeline(64, 4)
    assert simulate(plan, costs).makespan == 99.5


@pytest.mark.parametrize(
    ("costs", "culprit"),
    [
        ({"forward": -1.0}, "forward"),
        ({"forward": (1.0, -0.5)}, "forward"),
        ({"forward": float("nan")}, "forward"),
        ({"forward": (1.0, float("inf"))}, "forward"),
        ({"transfer": -0.1}, "transfer"),
        ({"transfer": float("inf")}, "transfer"),
        ({"transfer": float("nan")}, "transfer"),
        ({"activation_bytes": -1}, "activation_bytes"),
        ({"activation_bytes": 10**400}, "activation_bytes"),
        ({"bandwidth": 0}, "bandwidth"),
        ({"bandwidth": -1.0}, "bandwidth"),
        ({"bandwidth": float("inf")}, "bandwidth"),
        ({"bandwidth": float("nan")}, "bandwidth"),
        ({"backward": 2.0}, "backward"),
    ],
)
def test_costs_that_cannot_be_are_refused(costs, culprit):
    with pytest.raises(ValidationError) as raised:
        Costs(**costs)
    assert {error["loc"][0] for error in raised.value.errors()} == {culprit}


@pytest.mark.parametrize("forward", [(), (1.0,), (1.0,) * 4])
def test_costs_of_another_number_of_stages_are_refused(forward):
    needed = f"forward lists {len(forward)} costs, needed a single number or a list of 3 (stages=3)"
    with pytest.raises(ValueError, match=f"^{re.escape(needed)}$"):
        simulate(compile_pipeline(2, 3), Costs(forward=forward))


@pytest.mark.parametrize(
    "costs", [Costs(forward=1e308), Costs(activation_bytes=1, bandwidth=1e-320)]
)
def test_times_beyond_all_numbers_are_refused(costs):
    with pytest.raises(ValueError, match="needed a finite number of seconds"):
        simulate(compile_pipeline(4, 3), costs)


@pytest.mark.parametrize(
    ("plan", "complaint"),
    [
        (
            pipeline("L0 F0", "R0 L0 F0"),
            "coverage: stage 0: output of micro-batch 0 never sent, needed once",
        ),
        (pipeline("L0", "L0 F0"), "coverage: stage 0: micro-batch 0 never forwarded"),
    ],
)
def test_an_unsound_plan_is_refused_in_one_sentence(plan, complaint):
    with pytest.raises(UnsoundPlanError) as raised:
        simulate(plan)
    assert str(raised.value) == f"a plan with errors has no timeline: {complaint}"


@at_corners(overlap=True)
@settings(max_examples=30)
@given(size=sizes(4, 4), overlap=st.booleans())
def test_a_timeline_survives_json(size, overlap):
    costs = Costs(forward=(0.1,) * size[1], transfer=0.3, activation_bytes=7, bandwidth=3.0)
    timeline = simulate(compile_pipeline(*size, overlap=overlap), costs)
    assert Timeline.model_validate_json(timeline.model_dump_json()) == timeline


def test_a_timeline_has_the_keys_of_its_schema():
    schema = json.loads((json_schemas.DIRECTORY / "timeline.schema.json").read_text())
    document = json.loads(simulate(compile_pipeline(2, 2)).model_dump_json())
    assert set(document) == set(schema["required"]) == set(schema["properties"])
    stage, kinds = document["stages"][0], schema["$defs"]
    assert set(stage) == set(kinds["StageTimeline"]["properties"])
    assert set(stage["spans"][0]) == set(kinds["Span"]["properties"])
    assert set(document["costs"]) == set(kinds["Costs"]["properties"])
