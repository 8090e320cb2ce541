"""The schedules that ship are sound for all sizes, as `docs/explanation/proofs.md` lists them."""

from dataclasses import replace

import pytest

from tests.proofs.cases import CASES, one_each, two_each
from tests.proofs.model import InferenceModel, InterleavedModel, Model, VShapeModel
from tests.proofs.obligations import obligations
from tests.proofs.scene import Case, Obligation
from tests.proofs.terms import Facts, all_of, growth_is_true, where

ABOUT_PAIRS = ("have a place each", "is not earlier", "one micro-batch after the other")
"""Some pairs of instructions are never on one rank, or never of one micro-batch."""


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def owed(request) -> list[Obligation]:
    """All that has to be proved of a variant of a schedule."""
    return list(obligations(request.param))


def test_every_obligation_is_proved_for_all_sizes(owed):
    assert [obligation.name for obligation in owed if not obligation.holds()] == []
    assert len(owed) > 100


def test_no_obligation_is_proved_because_what_it_assumes_cannot_be(owed):
    alone = [o for o in owed if not any(words in o.name for words in ABOUT_PAIRS)]
    empty = [o.name for o in alone if not o.is_about_something()]
    # With one stage on each rank, nothing is handed over from stage to stage.
    needless = "inference, blocking: CopyActivation", "inference, blocking: ForwardPass and Copy"
    assert [name for name in empty if not name.startswith(needless)] == []
    for words in ABOUT_PAIRS:
        assert any(o.is_about_something() for o in owed if words in o.name), words


def test_products_grow_as_the_proofs_assume():
    assert growth_is_true()


def test_interleaved_with_one_stage_on_each_rank_is_the_inference_schedule():
    facts = Facts()
    micro_batches, ranks, _, _ = one_each(facts)
    m, s = facts.unknown("m"), facts.unknown("s")
    one, other = (kind(micro_batches, ranks, ranks) for kind in (InferenceModel, InterleavedModel))
    same = all_of(
        one.step_of(s, m) == other.step_of(s, m),
        one.rank(s) == other.rank(s),
        one.slot(s) == other.slot(s),
        one.num_buffers == other.num_buffers,
    )
    sizes = [micro_batches >= 1, ranks >= 1, m >= 0, m < micro_batches, s >= 0, s < ranks]
    assert Obligation("interleaved, v = 1", [*sizes, *facts.all()], same).holds()


@pytest.mark.parametrize("kind", [InferenceModel, VShapeModel])
def test_the_numbers_of_steps_are_those_of_the_docstrings(kind):
    facts = Facts()
    micro_batches, stages, ranks, _ = (one_each if kind is InferenceModel else two_each)(facts)
    steps = kind(micro_batches, stages, ranks).steps
    said = micro_batches + stages - 1 if kind is InferenceModel else 2 * (micro_batches + ranks - 1)
    assert Obligation("steps", facts.all(), steps == said).holds()


class OneBuffer(InferenceModel):
    """Enough for the blocking variant, in which nothing is received ahead."""

    @property
    def num_buffers(self):
        return 1 + 0 * self.stages


class OneSlot(InferenceModel):
    """Every stage sends and receives at once."""

    def slot(self, stage):
        return 0 * stage


class OddRingOfTwoColours(InterleavedModel):
    """The slots of an even ring, in rings of any number of ranks."""

    def slot(self, stage):
        return self.rank(stage) % 2


class EveryStep(VShapeModel):
    """Micro-batches enter at every step, so the two directions of a rank meet."""

    def step_of(self, stage, micro_batch):
        return micro_batch + stage


class WithoutGroups(InterleavedModel):
    """Micro-batches enter at every step, also while others are in their second lap."""

    def step_of(self, stage, micro_batch):
        return micro_batch + stage


class TwoInOne(VShapeModel):
    """Posts are hoisted as if there were two buffers, and there is one."""

    @property
    def num_buffers(self):
        return where(self.micro_batches == 1, 1 + 0 * self.stages, 2 + 0 * self.stages)

    def buffer_of(self, micro_batch):
        return 0 * micro_batch


BROKEN: tuple[tuple[type[Model], Case, str], ...] = (
    (OneBuffer, CASES[1], "ForwardPass and PostRecvActivation touch the input"),
    (OneSlot, CASES[0], "RecvActivation and SendActivation have a place each"),
    (OddRingOfTwoColours, CASES[2], "RecvActivation and SendActivation have a place each"),
    (EveryStep, CASES[4], "ForwardPass and ForwardPass have a place each"),
    (WithoutGroups, CASES[2], "ForwardPass and ForwardPass have a place each"),
    (TwoInOne, CASES[5], "ForwardPass and PostRecvActivation touch the input"),
)


@pytest.mark.parametrize(("model", "case", "words"), BROKEN)
def test_a_schedule_that_is_not_sound_is_not_proved(model, case, words):
    broken = replace(case, model=model)
    asked = [o for o in obligations(broken) if words in o.name]
    assert asked
    assert not all(obligation.holds() for obligation in asked)
