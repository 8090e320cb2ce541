"""The inference schedule, against pictures drawn by hand and DeepSpeed's rules stated anew."""

from collections import defaultdict
from itertools import product

import pytest

from schedcc import compile_pipeline
from schedcc.testing.plans import words
from schemas import LoadMicroBatch, Step
from tests.support.inference_steps import NUM_BUFFERS, inference_steps

GOLDEN = {
    (1, 1): ["L0 F0"],
    (3, 1): ["L0 F0 | L1 F1 | L2 F2"],
    (1, 3): [
        "L0 F0 | S0    |         ",
        "      | R0 F0 | S0      ",
        "      |       | L0 R0 F0",
    ],
    (2, 2): [
        "L0 F0 | L1 S0 F1 | S1      ",
        "      | L0 R0 F0 | L1 R1 F1",
    ],
    (4, 3): [
        "L0 F0 | L1 S0 F1 | L2 S1 F2 | L3 S2 F3 | S3       |         ",
        "      | R0 F0    | R1 S0 F1 | R2 S1 F2 | R3 S2 F3 | S3      ",
        "      |          | L0 R0 F0 | L1 R1 F1 | L2 R2 F2 | L3 R3 F3",
    ],
    (2, 4): [
        "L0 F0 | L1 S0 F1 | S1       |          |         ",
        "      | R0 F0    | R1 S0 F1 | S1       |         ",
        "      |          | R0 F0    | S0 R1 F1 | S1      ",
        "      |          |          | L0 R0 F0 | L1 R1 F1",
    ],
    (3, 5): [
        "L0 F0 | L1 S0 F1 | L2 S1 F2 | S2       |          |          |         ",
        "      | R0 F0    | R1 S0 F1 | R2 S1 F2 | S2       |          |         ",
        "      |          | R0 F0    | S0 R1 F1 | S1 R2 F2 | S2       |         ",
        "      |          |          | R0 F0    | R1 S0 F1 | R2 S1 F2 | S2      ",
        "      |          |          |          | L0 R0 F0 | L1 R1 F1 | L2 R2 F2",
    ],
}


@pytest.mark.parametrize("size", GOLDEN, ids=str)
def test_the_schedule_is_the_one_drawn(size):
    plan = compile_pipeline(*size)
    drawn = [[" ".join(cell.split()) for cell in row.split("|")] for row in GOLDEN[size]]
    assert [[words(step) for step in program.steps] for program in plan.programs] == drawn


def test_even_stages_receive_into_the_steps_parity_and_send_from_the_other():
    even = compile_pipeline(2, 4).stage(2).steps
    (receive_0, _), (send_0, receive_1, _), (send_1,) = even[2:5]
    assert (receive_0.buffer, receive_0.peer) == (0, 1)  # step 2: 2 % 2
    assert (send_0.buffer, send_0.peer) == (0, 3)  # step 3: (3 + 1) % 2
    assert (receive_1.buffer, receive_1.peer) == (1, 1)  # step 3: 3 % 2
    assert (send_1.buffer, send_1.peer) == (1, 3)  # step 4: (4 + 1) % 2


def test_odd_stages_send_from_the_steps_parity_and_receive_into_the_other():
    odd = compile_pipeline(2, 4).stage(1).steps
    (receive_0, _), (receive_1, send_0, _), (send_1,) = odd[1:4]
    assert (receive_0.buffer, receive_0.peer) == (0, 0)  # step 1: (1 + 1) % 2
    assert (receive_1.buffer, receive_1.peer) == (1, 0)  # step 2: (2 + 1) % 2
    assert (send_0.buffer, send_0.peer) == (0, 2)  # step 2: 2 % 2
    assert (send_1.buffer, send_1.peer) == (1, 2)  # step 3: 3 % 2


def test_loads_and_forwards_use_the_buffer_that_the_step_receives_into():
    buffers = [[i.buffer for i in step] for step in compile_pipeline(3, 1).stage(0).steps]
    assert buffers == [[0, 0], [1, 1], [0, 0]]
    buffers = [[i.buffer for i in step] for step in compile_pipeline(2, 2).stage(1).steps]
    assert buffers == [[], [0, 0, 0], [1, 1, 1]]


EXECUTION_ORDER = {
    "even": ("LoadMicroBatch", "SendActivation", "RecvActivation", "ForwardPass"),
    "odd": ("LoadMicroBatch", "RecvActivation", "SendActivation", "ForwardPass"),
}


def stated(micro_batches: int, stages: int) -> dict[int, list[list[tuple]]]:
    """The schedule as facts about micro-batches: each tells where it is at which step.

    Returns, for each stage, its steps as lists of `(op, micro_batch, buffer[, peer])`.
    """
    cells: defaultdict[tuple[int, int], dict[str, tuple]] = defaultdict(dict)
    for m, s in product(range(micro_batches), range(stages)):
        t = m + s
        into = {"even": t % 2, "odd": (t + 1) % 2}
        out_of = {"even": (t + 2) % 2, "odd": (t + 1) % 2}  # at step t + 1
        here, there = parity(s), parity(s + 1)
        cells[s, t]["ForwardPass"] = (m, into[here])
        if s in (0, stages - 1):
            cells[s, t]["LoadMicroBatch"] = (m, into[here])
        if s < stages - 1:
            into_there = {"even": (t + 1) % 2, "odd": (t + 2) % 2}[there]
            cells[s, t + 1]["SendActivation"] = (m, out_of[here], s + 1)
            cells[s + 1, t + 1]["RecvActivation"] = (m, into_there, s)
    return {
        s: [
            [(op, *cells[s, t][op]) for op in EXECUTION_ORDER[parity(s)] if op in cells[s, t]]
            for t in range(micro_batches + stages - 1)
        ]
        for s in range(stages)
    }


def parity(stage_id: int) -> str:
    return "odd" if stage_id % 2 else "even"


def as_tuples(step: Step) -> list[tuple]:
    return [tuple(instruction.model_dump(exclude={"stage"}).values()) for instruction in step]


@pytest.mark.parametrize("size", product(range(1, 9), range(1, 7)), ids=str)
def test_every_instruction_follows_the_rules_as_stated_anew(size):
    expected = stated(*size)
    for program in compile_pipeline(*size).programs:
        assert [as_tuples(step) for step in program.steps] == expected[program.rank]


def ops(micro_batches: int, stages: int, stage_id: int) -> list[list[str]]:
    return [[i.op for i in s] for s in inference_steps(micro_batches, stages, stage_id)]


LOAD, FORWARD = "LoadMicroBatch", "ForwardPass"
SEND, RECEIVE = "SendActivation", "RecvActivation"


@pytest.mark.parametrize("micro_batches", [1, 3, 8, 10])
def test_one_stage_loads_and_forwards_in_every_step(micro_batches):
    assert ops(micro_batches, 1, 0) == [[LOAD, FORWARD]] * micro_batches


@pytest.mark.parametrize("micro_batches", [1, 3, 8, 10])
def test_the_first_stage_fills_then_sends_one_behind(micro_batches):
    first = ops(micro_batches, 3, 0)
    steady = [[LOAD, SEND, FORWARD]] * (micro_batches - 1)
    assert first == [[LOAD, FORWARD], *steady, [SEND], []]


@pytest.mark.parametrize("micro_batches", [1, 3, 8, 10])
def test_a_middle_stage_is_idle_then_relays_and_ends_with_a_send(micro_batches):
    middle = ops(micro_batches, 3, 1)
    steady = [[RECEIVE, SEND, FORWARD]] * (micro_batches - 1)
    assert middle == [[], [RECEIVE, FORWARD], *steady, [SEND]]


@pytest.mark.parametrize("micro_batches", [1, 3, 8, 10])
def test_the_last_stage_never_sends(micro_batches):
    assert ops(micro_batches, 3, 2) == [[], [], *[[LOAD, RECEIVE, FORWARD]] * micro_batches]


def test_the_steps_come_lazily():
    endless = inference_steps(10**12, 10**6, 0)
    assert next(endless)[0] == LoadMicroBatch(stage=0, micro_batch=0, buffer=0)


def test_two_buffers_are_enough_whatever_the_size():
    assert NUM_BUFFERS == 2
    assert {compile_pipeline(m, s).num_buffers for m, s in [(1, 1), (8, 2), (2, 8)]} == {2}
