"""The variants of the schedules that ship, with their sizes."""

from tests.proofs.model import InferenceModel, InterleavedModel, VShapeModel
from tests.proofs.scene import Case
from tests.proofs.terms import Facts, Term, Truth
from tests.proofs.variants import blocking, overlapped_in_order, overlapped_on_a_chain

Sizes = tuple[Term, Term, Term, list[Truth]]


def one_each(facts: Facts) -> Sizes:
    """Any M, and as many ranks as stages."""
    micro_batches, ranks = facts.unknown("M"), facts.unknown("R")
    return micro_batches, ranks, ranks, []


def several_each(facts: Facts) -> Sizes:
    """Any M, R and v >= 2."""
    micro_batches, ranks, held = (facts.unknown(name) for name in ("M", "R", "v"))
    return micro_batches, held * ranks, ranks, [held >= 2]


def two_each(facts: Facts) -> Sizes:
    """Any M and R, and twice as many stages."""
    micro_batches, ranks = facts.unknown("M"), facts.unknown("R")
    return micro_batches, 2 * ranks, ranks, []


CASES = (
    Case("inference, blocking", InferenceModel, blocking, one_each, barriers=True),
    Case(
        "inference, overlapped", InferenceModel, overlapped_on_a_chain, one_each, barriers=False
    ),
    Case("interleaved, blocking", InterleavedModel, blocking, several_each, barriers=True),
    Case(
        "interleaved, overlapped", InterleavedModel, overlapped_in_order, several_each,
        barriers=False,
    ),
    Case("v_shape, blocking", VShapeModel, blocking, two_each, barriers=True),
    Case("v_shape, overlapped", VShapeModel, overlapped_in_order, two_each, barriers=False),
)  # fmt: skip
