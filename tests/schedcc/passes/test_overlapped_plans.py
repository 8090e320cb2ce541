"""Plans whose transfers cross forwards, lowered by hand: the right ones and the nearly right ones.

A receive is posted as soon as its place is free, a send right after its forward; its wait comes
just before the place is written again.
"""

import pytest

from schedcc import check
from schedcc.testing.executor import FailedError, execute
from schedcc.testing.plans import pipeline

FIRST = """
    L0 F0 s>0 | L1 F1 s>1      | L2 s.0 F2 s>2  | L3 s.1 F3 s>3      | s.2            | s.3"""
MIDDLE = """
    r<0       | r.0 r<1 F0 s>0 | r.1 r<2 F1 s>1 | r.2 r<3 s.0 F2 s>2 | r.3 s.1 F3 s>3 | s.2 s.3"""
LAST = """
              | r<0            | L0 r.0 r<1 F0  | L1 r.1 r<2 F1      | L2 r.2 r<3 F2  | L3 r.3 F3"""

SOUND = {
    "S = 1": ("L0 F0 | L1 F1 | L2 F2 | L3 F3",),
    "M > S": (FIRST, MIDDLE, LAST),
    "sends alone": (
        FIRST,
        " | L0 R0 F0 | L1 R1 F1 | L2 R2 F2 | L3 R3 F3",
    ),
    "receives alone": (
        "L0 F0 | L1 S0 F1 | L2 S1 F2 | L3 S2 F3 | S3",
        "r<0 | L0 r.0 r<1 F0 | L1 r.1 r<2 F1 | L2 r.2 r<3 F2 | L3 r.3 F3",
    ),
    "waits in another order than posts": (
        "L0 F0 s>0 L1 F1 s>1 s.1 s.0 | L2 F2 s>2 L3 F3 s>3 s.3 s.2",
        "r<0 r<1 r.1 r.0 L0 F0 L1 F1 | r<2 r<3 r.3 r.2 L2 F2 L3 F3",
    ),
}
SMALL = {
    "M = 1": ("L0 F0 s>0 | s.0", "r<0 | L0 r.0 F0"),
    "M < S": ("L0 F0 s>0 | s.0 |", "r<0 | r.0 F0 s>0 | s.0", "| r<0 | L0 r.0 F0"),
}


@pytest.mark.parametrize("name", [*SOUND, *SMALL])
def test_sound_overlapped_plans_have_no_findings(name):
    micro_batches = 4 if name in SOUND else 1
    plan = pipeline(*{**SOUND, **SMALL}[name], micro_batches=micro_batches)
    assert check(plan).findings == ()
    execute(plan)


NEARLY = {
    "a receive posted before the forward that reads its place": (
        (FIRST, MIDDLE.replace("r.0 r<1 F0 s>0 | r.1 r<2", "r.0 r<1 r<2 F0 s>0 | r.1"), LAST),
        "buffer: stage 1, step 1: PostRecvActivation(micro_batch=2) writes over the input of "
        "buffer 0, where nothing has read m=0 yet",
    ),
    "a wait for a send that comes after the place is written": (
        (FIRST, MIDDLE.replace("s.0 F2", "F2 s.0"), LAST),
        "buffer: stage 1, step 3: ForwardPass(micro_batch=2) writes the output of buffer 0, "
        "in flight since step 1: PostSendActivation(micro_batch=0)",
    ),
    "a forward before the wait for its input": (
        (FIRST, MIDDLE, LAST.replace("L3 r.3 F3", "L3 F3 r.3")),
        "buffer: stage 2, step 5: ForwardPass(micro_batch=3) reads the input of buffer 1, "
        "in flight since step 4: PostRecvActivation(micro_batch=3)",
    ),
    "a wait that is forgotten": (
        (FIRST.replace("s.3", ""), MIDDLE, LAST),
        "channel: stage 0, step 3: PostSendActivation(stage=0, micro_batch=3, buffer=1, peer=1) "
        "is never waited for",
    ),
    "a post that is forgotten": (
        (FIRST, MIDDLE, LAST.replace("r<0", "")),
        "channel: stage 2, step 2: WaitRecvActivation(stage=2, micro_batch=0, buffer=0, peer=1) "
        "waits for a transfer that was not posted",
    ),
    "a send posted before its forward": (
        (FIRST.replace("L0 F0 s>0", "L0 s>0 F0"), MIDDLE, LAST),
        "buffer: stage 0, step 0: PostSendActivation(micro_batch=0) reads the output of buffer 0, "
        "which holds nothing, needed m=0",
    ),
    "receives posted in another order than the sends": (
        (FIRST, MIDDLE, LAST.replace("r<0", "r<1").replace("r.0 r<1", "r.0 r<0")),
        "channel: stage 2, step 1: channel 1->2: transfer 1 sends micro-batch 0 "
        "(stage 1, step 1) and receives it as micro-batch 1",
    ),
}


@pytest.mark.parametrize("name", NEARLY)
def test_overlapped_plans_that_are_nearly_right_are_refused(name):
    texts, finding = NEARLY[name]
    assert texts != SOUND["M > S"]
    plan = pipeline(*texts, micro_batches=4)
    assert finding in [str(found) for found in check(plan).findings]
    with pytest.raises(FailedError):
        execute(plan)
