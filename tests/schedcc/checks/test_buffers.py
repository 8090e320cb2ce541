"""`check_buffers` on bad programs written by hand, and on overlapped programs that are sound."""

import pytest

from schedcc.checks.buffers import check_buffers
from schedcc.testing.plans import program
from schemas import Finding, PlanHeader


def buffers(stage_id: int, stages: int, text: str) -> list[Finding]:
    header = PlanHeader(format="", micro_batches=8, stages=stages)
    return list(check_buffers(header, program(stage_id, text)))


def finding(message: str, stage_id: int, step: int | None = None) -> Finding:
    return Finding(code="buffer", message=message, stage_id=stage_id, step=step)


@pytest.mark.parametrize(
    ("stage_id", "text"),
    [
        (0, "L0 F0 S0 | L1 F1 S1"),
        (1, "R0 F0 S0 | R1 F1 S1"),
        (2, "L0 R0 F0 | R1 L1 F1"),
        (1, "r<0 r.0 r<1 F0 s>0 | r.1 F1 s.0 s>1 | s.1"),  # receives cross forwards, sends linger
        (1, "r<0 r.0 F0 s>0 r<2 | r.2 s.0 F2 s>2 s.2"),  # both places of buffer 0 in flight
        (2, "L0 r<0 r.0 r<1 F0 | L1 r.1 F1"),
    ],
)
def test_sound_programs_have_no_findings(stage_id, text):
    assert buffers(stage_id, 3, text) == []


def test_a_forward_needs_its_input():
    message = "ForwardPass(micro_batch=0) reads the input of buffer 0, which holds nothing"
    assert buffers(0, 2, "F0 S0") == [finding(f"{message}, needed m=0", 0, 0)]


def test_a_forward_on_the_last_stage_needs_its_label():
    message = "ForwardPass(micro_batch=0) reads the label of buffer 0, which holds nothing"
    assert buffers(1, 2, "R0 F0") == [finding(f"{message}, needed m=0", 1, 0)]
    assert buffers(1, 3, "R0 F0 S0") == []


def test_a_forward_does_not_take_the_input_of_another_micro_batch():
    message = "ForwardPass(micro_batch=2) reads the input of buffer 0, which holds m=0, needed m=2"
    assert buffers(1, 3, "R0 F0 S0 | F2 S2") == [finding(message, 1, 1)]


def test_a_send_needs_an_output():
    message = "SendActivation(micro_batch=0) reads the output of buffer 0, which holds nothing"
    assert buffers(1, 3, "R0 S0 F0") == [
        finding(f"{message}, needed m=0", 1, 0),
        finding(
            "the output of buffer 0 still holds micro-batch 0 at the end, which nothing has read", 1
        ),
    ]


def test_a_send_does_not_take_the_output_of_another_micro_batch():
    message = "SendActivation(micro_batch=2) reads the output of buffer 0, which holds m=0"
    assert buffers(0, 2, "L0 F0 | S2") == [finding(f"{message}, needed m=2", 0, 1)]


def test_a_send_does_not_take_the_output_of_another_buffer():
    messages = [f.message for f in buffers(0, 2, "L0 F0 | S0@1")]
    assert messages == [
        "SendActivation(micro_batch=0) reads the output of buffer 1, which holds nothing, "
        "needed m=0",
        "the output of buffer 0 still holds micro-batch 0 at the end, which nothing has read",
    ]


def test_a_receive_does_not_write_over_an_input_that_is_needed():
    message = "RecvActivation(micro_batch=2) writes over the input of buffer 0"
    assert buffers(1, 3, "R0 | R2 F2 S2") == [
        finding(f"{message}, where nothing has read m=0 yet", 1, 1)
    ]


def test_a_load_does_not_write_over_an_input_and_a_label_that_are_needed():
    message = "LoadMicroBatch(micro_batch=2) writes over the {} of buffer 0"
    assert buffers(0, 1, "L0 | L2 F2") == [
        finding(f"{message.format(place)}, where nothing has read m=0 yet", 0, 1)
        for place in ("input", "label")
    ]


def test_a_forward_does_not_write_over_an_output_that_was_not_sent():
    message = "ForwardPass(micro_batch=2) writes over the output of buffer 0"
    assert buffers(0, 2, "L0 F0 | L2 F2 S2") == [
        finding(f"{message}, where nothing has read m=0 yet", 0, 1)
    ]


def test_the_last_stage_delivers_its_output_at_once():
    assert buffers(0, 1, "L0 F0 | L2 F2") == []


def test_what_nothing_has_read_at_the_end_is_lost():
    message = "the input of buffer 1 still holds micro-batch 1 at the end, which nothing has read"
    assert buffers(1, 3, "R0 R1 F0 S0") == [finding(message, 1)]


def test_a_posted_receive_keeps_the_forward_from_its_input():
    message = "ForwardPass(micro_batch=0) reads the input of buffer 0, in flight since step 0"
    assert buffers(1, 3, "r<0 | F0 r.0 S0") == [
        finding(f"{message}: PostRecvActivation(micro_batch=0)", 1, 1),
        finding(
            "the input of buffer 0 still holds micro-batch 0 at the end, which nothing has read", 1
        ),
    ]


def test_a_posted_receive_keeps_other_receives_from_its_input():
    message = "RecvActivation(micro_batch=2) writes the input of buffer 0, in flight since step 0"
    found = buffers(1, 3, "r<0 | R2 F2 S2")
    assert found == [finding(f"{message}: PostRecvActivation(micro_batch=0)", 1, 1)]


def test_a_posted_send_keeps_the_forward_from_its_output():
    message = "ForwardPass(micro_batch=2) writes the output of buffer 0, in flight since step 0"
    assert buffers(0, 2, "L0 F0 s>0 | L2 F2 s.0 S2") == [
        finding(f"{message}: PostSendActivation(micro_batch=0)", 0, 1)
    ]


def test_a_posted_send_keeps_other_sends_from_its_output():
    message = "SendActivation(micro_batch=0) reads the output of buffer 0, in flight since step 0"
    assert buffers(0, 2, "L0 F0 s>0 S0 s.0") == [
        finding(f"{message}: PostSendActivation(micro_batch=0)", 0, 0)
    ]


def test_a_posted_receive_does_not_write_over_an_input_that_is_needed():
    message = "PostRecvActivation(micro_batch=2) writes over the input of buffer 0"
    found = buffers(1, 3, "R0 r<2 F0 r.2 F2 S2")
    assert found[0] == finding(f"{message}, where nothing has read m=0 yet", 1, 0)


def test_a_posted_receive_into_a_place_that_was_read_is_fine():
    assert buffers(1, 3, "R0 F0 r<2 S0 | r.2 F2 S2") == []


def test_a_load_of_labels_disturbs_no_input_in_flight():
    assert buffers(1, 2, "r<0 L0 r.0 F0") == []


def test_places_are_told_apart_by_buffer():
    assert buffers(1, 3, "r<0 R1 F1 S1 r.0 F0 S0") == []
