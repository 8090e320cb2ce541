"""Transport models: what a laxer transport lets a plan do, and what no transport changes."""

from collections import Counter, defaultdict
from itertools import product

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from schedcc import check, compile_pipeline, compile_stage, dependency_graph
from schedcc.testing.plans import pipeline
from schedcc.testing.strategies import at_corners, random_transfers, sizes
from schemas import PipelinePlan, Report, TransportModel
from tests.support.plans import deadlocks

STRICTEST = TransportModel()
PER_CHANNEL = TransportModel(queue="channel")
ONE_BUFFERED = TransportModel(buffered_sends=1)
MODELS = [
    TransportModel(queue=queue, buffered_sends=buffered)
    for queue, buffered in product(("stage", "channel"), (0, 1, 2))
]

POSTED_IN_FRONT = pipeline("r<1:1 S0:1 r.1:1", "R0:0 S1:0", micro_batches=2)
BOTH_SEND_FIRST = pipeline("S0:1 R1:1", "S1:0 R0:0", micro_batches=2)
BOTH_SEND_TWO_FIRST = pipeline("S0:1 S1:1 R2:1 R3:1", "S2:0 S3:0 R0:0 R1:0", micro_batches=4)
POSTED_SEND_IN_FRONT = pipeline("s>0:1 S1:2 s.0:1", "R2:2 R0:0", "R1:0 S2:1", micro_batches=3)
BOTH_RECEIVE_FIRST = pipeline("R1:1 S0:1", "R0:0 S1:0", micro_batches=2)


def edges(plan: PipelinePlan, transport: TransportModel, *reasons: str) -> set[str]:
    """The edges that have one of the reasons, as `stage.offset moment -> ... why`."""
    return {
        f"{a.rank}.{a.offset} {a.moment} -> {b.rank}.{b.offset} {b.moment} {why}"
        for a, b, why in dependency_graph(plan, transport).edges(data="why")
        if why in reasons
    }


def gets_stuck(plan: PipelinePlan, transport: TransportModel) -> bool:
    """Whether a stage cannot finish, by brute force: queues, and boxes for buffered messages."""
    programs = [[i for step in program.steps for i in step] for program in plan.programs]
    position = [0] * len(programs)
    queues: defaultdict[tuple, list] = defaultdict(list)
    boxes: Counter[tuple[int, int]] = Counter()
    issued, ended = set(), set()

    def queue_of(stage: int, sends: bool, peer: int) -> list:
        return queues[(stage, sends, peer) if transport.queue == "channel" else (stage,)]

    def advance(stage: int) -> bool:
        if position[stage] == len(programs[stage]):
            return False
        i = programs[stage][position[stage]]
        sends = "Send" in i.op
        end = (stage, sends, i.peer, i.micro_batch)
        is_new = not i.op.startswith("Wait") and end not in issued
        if is_new:
            issued.add(end)
            queue_of(stage, sends, i.peer).append(end)
        goes_on = i.op.startswith("Post") or end in ended
        position[stage] += goes_on
        return is_new or goes_on

    def finish(queue: list) -> bool:
        if not queue:
            return False
        stage, sends, peer, _ = queue[0]
        channel = (stage, peer) if sends else (peer, stage)
        if transport.buffered_sends and sends and boxes[channel] < transport.buffered_sends:
            boxes[channel] += 1
        elif transport.buffered_sends and not sends and boxes[channel]:
            boxes[channel] -= 1
        elif transport.buffered_sends == 0 and sends:
            other = queue_of(peer, False, stage)
            if not other or other[0][:3] != (peer, False, stage):
                return False
            ended.add(other.pop(0))
        else:
            return False
        ended.add(queue.pop(0))
        return True

    progress = True
    while progress:
        progress = any([advance(stage) for stage in range(len(programs))])  # noqa: C419 (all)
        progress |= any([finish(queue) for queue in list(queues.values())])  # noqa: C419 (all)
    return position != [len(program) for program in programs]


@pytest.mark.parametrize(
    ("plan", "stuck_under"),
    [
        (POSTED_IN_FRONT, "stage 0, stage 1, stage 2"),
        (BOTH_SEND_FIRST, "stage 0, channel 0"),
        (BOTH_SEND_TWO_FIRST, "stage 0, stage 1, channel 0, channel 1"),
        (POSTED_SEND_IN_FRONT, "stage 0"),
        (BOTH_RECEIVE_FIRST, "stage 0, stage 1, stage 2, channel 0, channel 1, channel 2"),
        (pipeline("S0:0 R0:0"), "stage 0, channel 0"),
        (pipeline("S0", "R0"), ""),
    ],
)
def test_a_plan_is_stuck_under_exactly_these_models(plan, stuck_under):
    found = [model for model in MODELS if deadlocks(plan, model)]
    assert ", ".join(f"{model.queue} {model.buffered_sends}" for model in found) == stuck_under
    assert found == [model for model in MODELS if gets_stuck(plan, model)]


def test_the_finding_names_the_queue_that_holds_a_transfer_up():
    (finding,) = deadlocks(POSTED_IN_FRONT)
    assert "PostRecvActivation(micro_batch=1)  (queue)" in finding.message
    assert finding.message.startswith("stages 0 and 1 wait for each other:")


def test_the_finding_names_the_receive_that_makes_room():
    (finding,) = deadlocks(BOTH_SEND_TWO_FIRST, ONE_BUFFERED)
    assert (
        "stage 0, step 0: SendActivation(micro_batch=1)  waits for  "
        "stage 1, step 0: RecvActivation(micro_batch=0)  (rendezvous)"
    ) in finding.message


def test_a_posted_receive_holds_up_what_is_behind_it_in_a_queue_per_stage_only():
    behind = {"0.0 end -> 0.1 end queue", "0.0 end -> 1.0 end queue"}
    assert edges(POSTED_IN_FRONT, STRICTEST, "queue") == behind
    assert edges(POSTED_IN_FRONT, ONE_BUFFERED, "queue") == behind
    assert edges(POSTED_IN_FRONT, PER_CHANNEL, "queue") == set()


def test_transfers_of_one_channel_end_in_order_under_every_model():
    plan = pipeline("s>0 s>1 s.0 s.1", "r<0 r<1 r.0 r.1", micro_batches=2)
    for model in MODELS:
        in_order = {"0.0 end -> 0.1 end queue", "1.0 end -> 1.1 end queue"}
        assert in_order <= edges(plan, model, "queue")


@pytest.mark.parametrize(
    ("buffered", "waits"),
    [
        (0, {f"1.{k} start -> 0.{k} end rendezvous" for k in range(3)}),
        (1, {"1.0 end -> 0.1 end rendezvous", "1.1 end -> 0.2 end rendezvous"}),
        (2, {"1.0 end -> 0.2 end rendezvous"}),
        (3, set()),
    ],
)
@pytest.mark.parametrize("queue", ["stage", "channel"])
def test_a_send_waits_for_the_receive_that_makes_room(queue, buffered, waits):
    plan = pipeline("S0 S1 S2", "R0 R1 R2", micro_batches=3)
    model = TransportModel(queue=queue, buffered_sends=buffered)
    assert edges(plan, model, "rendezvous", "queue") == waits
    data = {f"0.{k} start -> 1.{k} end data" for k in range(3)}
    assert edges(plan, model, "data") == data


def test_the_strictest_model_is_the_default():
    plan = compile_pipeline(3, 3, overlap=True)
    default, strictest = dependency_graph(plan), dependency_graph(plan, STRICTEST)
    assert nx.utils.graphs_equal(default, strictest)
    assert check(plan) == check(plan, STRICTEST)


@settings(max_examples=100)
@given(plan=random_transfers(), model=st.sampled_from(MODELS))
def test_there_is_a_cycle_exactly_when_the_execution_gets_stuck(plan, model):
    stuck = gets_stuck(plan, model)
    assert nx.is_directed_acyclic_graph(dependency_graph(plan, model)) != stuck
    assert bool(deadlocks(plan, model)) == stuck


@settings(max_examples=60)
@given(plan=random_transfers())
def test_what_is_free_of_deadlock_under_a_model_is_so_under_every_laxer_one(plan):
    stuck = {(m.queue, m.buffered_sends): bool(deadlocks(plan, m)) for m in MODELS}
    for queue, buffered in stuck:
        laxer = [(q, b) for q, b in stuck if b >= buffered and queue in ("stage", q)]
        assert stuck[queue, buffered] or not any(stuck[model] for model in laxer)


@at_corners(overlap=True, model=PER_CHANNEL)
@at_corners(overlap=False, model=ONE_BUFFERED)
@settings(max_examples=60)
@given(size=sizes(8, 6), overlap=st.booleans(), model=st.sampled_from(MODELS))
def test_compiled_plans_are_sound_under_every_model(size, overlap, model):
    report = check(compile_pipeline(*size, overlap=overlap), model)
    assert report == Report(checks=report.checks, transport=model)
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_a_report_says_which_transport_was_asked_for():
    assert check(compile_pipeline(2, 2)).transport == STRICTEST
    assert check(BOTH_SEND_FIRST, ONE_BUFFERED).transport == ONE_BUFFERED
    assert check(compile_stage(2, 2, 0)).transport is None
    assert check(compile_stage(2, 2, 0), ONE_BUFFERED).transport is None


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_a_model_survives_json(model):
    assert TransportModel.model_validate_json(model.model_dump_json()) == model


def test_a_model_says_what_it_is():
    assert str(STRICTEST) == "one queue per stage, rendezvous"
    assert str(TransportModel(queue="channel", buffered_sends=2)) == (
        "one queue per channel, 2 buffered sends"
    )


@pytest.mark.parametrize("fields", [{"queue": "world"}, {"buffered_sends": -1}, {"queues": 2}])
def test_what_is_no_model_is_refused(fields):
    with pytest.raises(ValidationError):
        TransportModel(**fields)
