"""What must come of a fault on every stage."""

import pytest

from tests.chaos.cluster import Cluster, Outcome
from tests.chaos.faults import AGREED, DATA, LOST, STALLED, Fault, layers
from tests.support.models_for_tests import one_process

SEGMENTS = 24
"""More than any process needs at a time; each failure would leave several behind."""

RAISED_AT = {
    "layer raises": "ForwardPass(stage={s}, micro_batch={m}, ",
    "loss raises": "ForwardPass(stage={s}, micro_batch={m}, ",
    "new shape raises": "ForwardPass(stage={s}, micro_batch=0, ",
    "iterator raises": "the fetching of micro-batches",
    "listener raises": "micro_batch={m}, ",
}
AGREED_ON = {
    "short iterator": (
        "AgreementError",
        "the data of stage {s} ended after {m} micro-batches, needed 5",
    ),
    "shuffled loader": ("DifferentDataError", "read different inputs as micro-batch 0"),
    "nan": (
        "NonFiniteError",
        "the loss of micro-batch {m} is not finite: "
        "NaN first appears in the output of stage {s} (layers {a} to {b})",
    ),
}


def loss_of_one_process(stages: int) -> float:
    """What an evaluation without fault gives."""
    _, losses = one_process(layers(stages), DATA)
    weights = [len(inputs) for inputs, _ in DATA]
    total = sum(loss * weight for loss, weight in zip(losses, weights, strict=True))
    return total / sum(weights)


def check_evaluation(stages: int, outcomes: dict[int, Outcome]) -> None:
    """No fault: the loss of one process everywhere."""
    expected = loss_of_one_process(stages)
    assert {s: o.text for s, o in outcomes.items()} == dict.fromkeys(range(stages), "")
    for outcome in outcomes.values():
        assert outcome.loss == pytest.approx(expected, rel=1e-6)


def check(fault: Fault, stages: int, outcomes: dict[int, Outcome]) -> None:
    """Every stage ended in the way that fits the fault, and all tell the same story."""
    values = {"s": fault.stage, "m": fault.micro_batch, "a": 2 * fault.stage}
    values["b"] = values["a"] + 1
    if fault.kind in ("none", "slow layer"):
        check_evaluation(stages, outcomes)
    elif fault.kind in AGREED:
        error, text = AGREED_ON[fault.kind]
        for outcome in outcomes.values():
            assert outcome.error == error, outcome
            assert text.format(**values) in outcome.text
    else:
        _check_failure(fault, values, outcomes)


def _check_failure(fault: Fault, values: dict[str, int], outcomes: dict[int, Outcome]) -> None:
    survivors = {s: o for s, o in outcomes.items() if s != fault.stage}
    assert len({o.failure for o in survivors.values()}) == 1, survivors
    for outcome in survivors.values():
        assert outcome.failure is not None, outcome
        text = outcome.text
        if fault.kind in LOST:
            assert outcome.error == "LostPeerError", outcome
            assert f"stage {fault.stage} ended without a word, or cannot be reached" in text
            assert "stage" in text.partition(": ")[2]  # the channel
        elif fault.kind in STALLED:
            assert outcome.error == "StalledError", outcome
            verdict = {"stopped": "gave no sign of life", "hangs": "did not finish what it was at"}
            assert f"(the timeout): stage {fault.stage} {verdict[fault.kind]}" in text
            waits = f", waits for stage {fault.stage}", ", waits for all stages"
            assert any(wait in text for wait in waits), text
            if fault.kind == "hangs":
                assert f"ForwardPass(stage={fault.stage}, micro_batch={fault.micro_batch}, " in text
        else:
            assert outcome.error == "RemoteError", outcome
            headline = text.splitlines()[0]
            assert headline.startswith(f"stage {fault.stage} failed at "), text
            assert RAISED_AT[fault.kind].format(**values) in headline
            assert headline.endswith(f"ChaosError: {fault.kind} on stage {fault.stage}")
            assert "faults.py" in text, "the origin's traceback"
    if fault.kind not in LOST + STALLED:
        origin = outcomes[fault.stage]
        assert origin.error == "ChaosError", origin
        assert any(RAISED_AT[fault.kind].format(**values) in note for note in origin.notes)


def check_recovery(cluster: Cluster, sockets: dict[int, int]) -> None:
    """The same evaluators give the right result again, and nothing has piled up."""
    outcomes = cluster.evaluate(Fault("none", 0))
    check_evaluation(cluster.setup.stages, outcomes)
    assert {stage: outcome.sockets for stage, outcome in outcomes.items()} == sockets
    assert max(outcome.segments for outcome in outcomes.values()) <= SEGMENTS
    assert max(outcome.threads for outcome in outcomes.values()) <= 3  # with both patrols
