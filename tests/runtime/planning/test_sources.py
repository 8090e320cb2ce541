"""Where plans come from, and what evaluators of a process share of them."""

import pytest

from runtime.planning.sources import SMALL, plan_source
from schedcc import Outcome
from tests.support.own_schedules import Listed


@pytest.mark.parametrize("overlap", [True, False])
def test_evaluators_share_what_a_schedule_that_ships_has_compiled(overlap):
    one, other = (plan_source("interleaved", None, 4, 2) for _ in range(2))
    found = [source.plan(3, Outcome(), overlap=overlap) for source in (one, other)]
    assert found[0] is found[1]
    assert found[0] != one.plan(2, Outcome(), overlap=overlap)
    large = SMALL // 4 + 1
    assert one.plan(large, Outcome(), overlap=overlap) is not (
        other.plan(large, Outcome(), overlap=overlap)
    )


def test_plans_of_a_users_value_are_compiled_anew_since_it_may_have_changed():
    value = Listed((0, 1, 0), 1)
    one, other = (plan_source(value, None, 3, 2) for _ in range(2))
    assert one is not other
    found = [source.plan(3, Outcome(), overlap=False) for source in (one, other)]
    assert found[0] is not found[1]
    assert found[0] == found[1]
