"""`check_coverage` on bad programs written by hand."""

from schedcc.checks.coverage import check_coverage
from schedcc.testing.plans import program
from schemas import Finding, PlanHeader


def coverage(stage_id: int, stages: int, micro_batches: int, text: str) -> list[Finding]:
    header = PlanHeader(format="", micro_batches=micro_batches, stages=stages)
    return list(check_coverage(header, program(stage_id, text)))


def finding(message: str, stage_id: int, step: int | None = None) -> Finding:
    return Finding(code="coverage", message=message, stage_id=stage_id, step=step)


def test_each_micro_batch_forwarded_once_and_in_order_is_covered():
    assert coverage(0, 1, 3, "L0 F0 | L1 F1 | L2 F2") == []
    assert coverage(1, 3, 2, "R0 F0 | S0 R1 F1 | S1") == []


def test_split_sends_cover_like_whole_ones():
    assert coverage(0, 2, 2, "L0 F0 s>0 | L1 F1 s.0 s>1 s.1") == []


def test_a_micro_batch_that_is_never_forwarded_is_named():
    expected = [finding("micro-batch 1 never forwarded", 0)]
    assert coverage(0, 1, 3, "L0 F0 | L1 | L2 F2") == expected


def test_many_micro_batches_that_are_never_forwarded_are_named_as_ranges():
    expected = [finding("micro-batches 0, 2-999999999999 never forwarded", 0)]
    assert coverage(0, 1, 10**12, "L1 F1") == expected


def test_a_program_without_forwards_covers_nothing():
    assert coverage(0, 1, 4, "") == [finding("micro-batches 0-3 never forwarded", 0)]


def test_a_micro_batch_is_not_forwarded_twice():
    expected = [finding("micro-batch 0 forwarded again, needed once", 0, 1)]
    assert coverage(0, 1, 2, "F0 | F0 | F1") == expected


def test_micro_batches_are_forwarded_in_order():
    expected = [
        finding("micro-batch 0 forwarded after micro-batch 2", 0, 1),
        finding("micro-batch 1 forwarded after micro-batch 2", 0, 2),
    ]
    assert coverage(0, 1, 3, "F2 | F0 | F1") == expected


def test_an_output_is_sent_on():
    expected = [finding("output of micro-batch 1 never sent, needed once", 0)]
    assert coverage(0, 2, 2, "F0 | S0 F1 |") == expected


def test_an_output_is_not_sent_twice():
    expected = [finding("output of micro-batch 0 sent 3 times, needed once", 1)]
    assert coverage(1, 3, 1, "F0 | S0 | s>0 s.0 S0") == expected


def test_the_last_stage_has_nobody_to_send_to():
    assert coverage(1, 2, 1, "R0 L0 F0") == []


def test_every_flaw_is_listed():
    assert [f.message for f in coverage(0, 2, 3, "F1 | F0 S0 | F1")] == [
        "micro-batch 2 never forwarded",
        "micro-batch 0 forwarded after micro-batch 1",
        "micro-batch 1 forwarded again, needed once",
        "output of micro-batch 1 never sent, needed once",
    ]
