"""What must come of a fault on every stage."""

from collections.abc import Sequence

import pytest

from runtime.transport.shared_memory.sender import THREAD
from tests.chaos.cluster import Cluster
from tests.chaos.faults import (
    AGREED,
    DATA,
    LOST,
    NO_FAULT,
    STALLED,
    Fault,
    layers,
)
from tests.chaos.odd_errors import ODD_ERRORS
from tests.chaos.orders import Outcome
from tests.support.models_for_tests import one_process

SEGMENTS = 24
"""More than any process needs at a time; each failure would leave several behind."""

ENDS = 4
"""Of channels and collectives on which a rank sends: a busy one leaves it to threads to copy."""

SOCKETS_OF_A_GROUP = 16

RAISED_AT = {
    "layer raises": "ForwardPass(stage={s}, micro_batch={m}, ",
    "no descriptors": "ForwardPass(stage={s}, micro_batch={m}, ",
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
    texts = {stage: outcome.text for stage, outcome in outcomes.items()}
    assert texts == dict.fromkeys(range(stages), ""), texts
    for outcome in outcomes.values():
        assert outcome.loss == pytest.approx(expected, rel=1e-6)


def check(fault: Fault, stages: int, outcomes: dict[int, Outcome]) -> None:
    """Every stage ended in the way that fits the fault, and all tell the same story."""
    values = {"s": fault.stage, "m": fault.micro_batch, "a": 2 * fault.stage}
    values["b"] = values["a"] + 1
    if fault.kind in NO_FAULT:
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
            # A connection broke, or on a busy machine the silence was noticed before.
            ended = f"stage {fault.stage} ended without a word"
            assert text.startswith((f"{ended}, or cannot be reached: ", f"{ended}: ")), text
            assert "stage" in text.partition(": ")[2]  # the channel
        elif fault.kind in STALLED:
            assert outcome.error == "StalledError", outcome
            verdict = {"stopped": "gave no sign of life", "hangs": "did not finish what it was at"}
            assert f"(the timeout): stage {fault.stage} {verdict[fault.kind]}" in text
            waits = f", waits for stage {fault.stage}", ", waits for all stages"
            assert any(wait in text for wait in waits), text
            if fault.kind == "hangs":
                assert f"ForwardPass(stage={fault.stage}, micro_batch={fault.micro_batch}, " in text
        elif fault.kind in ODD_ERRORS:
            assert outcome.error == "RemoteError", outcome
            place = f"ForwardPass(stage={fault.stage}, micro_batch={fault.micro_batch}, buffer="
            assert f"stage {fault.stage} failed at " in text.partition(place)[0]
            assert ODD_ERRORS[fault.kind][1] in text.partition(place)[2], text
        else:
            assert outcome.error == "RemoteError", outcome
            headline = text.splitlines()[0]
            assert headline.startswith(f"stage {fault.stage} failed at "), text
            assert RAISED_AT[fault.kind].format(**values) in headline
            error = f"ChaosError: {fault.kind} on stage {fault.stage}"
            if fault.kind == "no descriptors":
                error = "OSError: [Errno 24] Too many open files: '/dev/null'"
            assert headline.endswith(error), headline
            assert "faults.py" in text, "the origin's traceback"
    if fault.kind in RAISED_AT:
        origin = outcomes[fault.stage]
        assert origin.error == ("OSError" if fault.kind == "no descriptors" else "ChaosError"), (
            origin
        )
        assert any(RAISED_AT[fault.kind].format(**values) in note for note in origin.notes)


OWN = {"ChaosError", "KeyboardInterrupt", "SystemExit", "FrozenInstanceError"}
OWN |= {text.partition(":")[0] for _, text in ODD_ERRORS.values()}
"""Classes of errors that only the rank where they are raised raises."""


def check_story(faults: Sequence[Fault], outcomes: dict[int, Outcome]) -> None:
    """No rank has a result; who did not fail himself tells what all others tell, of a culprit."""
    agreed = {AGREED_ON[fault.kind][0] for fault in faults if fault.kind in AGREED}
    stories = {outcome.failure for outcome in outcomes.values()} - {None}
    assert len(stories) <= 1, stories
    for rank, outcome in outcomes.items():
        if outcome.failure is None:
            failed = outcome.error in OWN and rank in {fault.stage for fault in faults}
            assert failed or outcome.error in agreed, (faults, rank, outcome)
        else:
            headline = outcome.text.splitlines()[0]
            assert any(f"stage {fault.stage}" in headline for fault in faults), headline


def check_separation(cluster: Cluster, outcomes: dict[int, Outcome]) -> None:
    """Of two hosts that cannot reach each other, each rank names those of the other one."""
    first = cluster.setup.namespaces[0]
    for rank, outcome in outcomes.items():
        host = cluster.setup.namespaces[rank]
        others = {n for n, there in enumerate(cluster.setup.namespaces) if there != host}
        assert outcome.failure is not None, outcome
        # Who gives up first closes connections; where that arrives, the other host has lost them.
        assert outcome.error in ("StalledError", "LostPeerError"), outcome
        if host == first:
            assert set(outcome.failure.gone) == others, outcome
        else:
            assert f"the store at {cluster.setup.address} port" in outcome.text, outcome
            assert set(outcome.failure.gone) >= others, outcome


def check_refusal(cluster: Cluster) -> None:
    """A process is missing: those that are left say so, all of them."""
    for outcome in cluster.evaluate(Fault("none", 0)).values():
        assert outcome.error == "LostPeerError", outcome


def check_parted(cluster: Cluster) -> None:
    """Some take processes for lost that were cut off: nobody evaluates any more, and says why."""
    for outcome in cluster.evaluate(Fault("none", 0)).values():
        assert outcome.error in ("LostPeerError", "StalledError"), outcome


def check_recovery(cluster: Cluster, sockets: dict[int, int], connecting: int = 0) -> None:
    """The same evaluators give the right result again, and nothing has piled up.

    Args:
        cluster: The processes.
        sockets: How many each had before.
        connecting: Groups that others did not come to, whose threads still wait for them.
    """
    outcomes = cluster.evaluate(Fault("none", 0))
    check_evaluation(cluster.setup.stages, outcomes)
    probes = cluster.setup.stages if cluster.setup.namespaces else 0  # of each rank, now and then
    for rank, outcome in outcomes.items():
        more = outcome.sockets - sockets[rank]
        assert more <= connecting * SOCKETS_OF_A_GROUP + probes, (rank, more)
        assert outcome.segments <= SEGMENTS, outcome
        others = [name for name in outcome.threads if name != THREAD]  # of ends that are in use
        assert len(others) <= 3 + connecting, outcome  # with those of heartbeats and watchdog
        assert len(outcome.threads) - len(others) <= ENDS, outcome
