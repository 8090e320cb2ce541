"""To test schedules and plans with: strategies, spoilt plans, and an executor of reference.

A schedule of one's own, tested for every size (`docs/how-to/testing.md`)::

    from hypothesis import given
    from schedcc.testing import assert_sound, shapes

    @given(shape=shapes(Looped()))
    def test_looped_is_sound(shape):
        assert_sound(*shape)

It needs Hypothesis, which `pip install 'schedcc[testing]'` brings; nothing else here imports it.
"""

try:
    import hypothesis as _hypothesis  # noqa: F401
except ModuleNotFoundError as error:
    message = "hypothesis is not installed: pip install 'schedcc[testing]' brings it"
    raise ModuleNotFoundError(message, name="hypothesis") from error

from schedcc.testing.assertions import assert_agreement, assert_executes, assert_sound
from schedcc.testing.executor import FailedError, execute
from schedcc.testing.mutations import Mutant, mutants, random_mutant
from schedcc.testing.plans import pipeline, program, with_program
from schedcc.testing.strategies import (
    TRANSPORT_MODELS,
    Shape,
    at_corners,
    grouped_transfers,
    mutants_of,
    outcomes,
    plans,
    random_transfers,
    shapes,
    sizes,
    transport_models,
)

__all__ = [
    "TRANSPORT_MODELS",
    "FailedError",
    "Mutant",
    "Shape",
    "assert_agreement",
    "assert_executes",
    "assert_sound",
    "at_corners",
    "execute",
    "grouped_transfers",
    "mutants",
    "mutants_of",
    "outcomes",
    "pipeline",
    "plans",
    "program",
    "random_mutant",
    "random_transfers",
    "shapes",
    "sizes",
    "transport_models",
    "with_program",
]
