"""A property test of the schedule in own_schedule.py: it is sound for all sizes, not for one.

Run it:  pytest examples/test_own_schedule.py   (pip install 'schedcc[testing]' brings Hypothesis)

It prints that two tests passed. Every drawn size is compiled in both variants, checked, and
executed under every model of a transport.
"""

from hypothesis import given, settings
from own_schedule import Looped

from schedcc.testing import Shape, assert_sound, shapes


@given(shape=shapes(Looped()))
@settings(max_examples=20, deadline=None)
def test_looped_is_sound(shape: Shape) -> None:
    assert_sound(*shape)


@given(shape=shapes(Looped()))
@settings(max_examples=20, deadline=None)
def test_looped_takes_as_many_steps_as_its_picture_says(shape: Shape) -> None:
    laps, most = shape.stages // shape.ranks, max(shape.micro_batches, shape.ranks)
    steps = len(shape.compile().programs[0].steps)
    assert steps == (laps - 1) * most + shape.micro_batches + shape.ranks - 1
