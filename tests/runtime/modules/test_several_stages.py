"""Several stages on a rank: layers drawn, tied, divided, saved and loaded as on one process."""

from collections.abc import Sequence
from itertools import combinations, pairwise
from math import comb
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from runtime import Evaluator, LayerSpec, TiedLayerSpec
from runtime.modules.partition import balanced, divide
from runtime.modules.partition_over_ranks import FEW
from runtime.testing import InMemoryTransport, run_threads
from tests.runtime.modules.test_building import built_by_hand, specs
from tests.runtime.modules.test_ties import DATA, IDS, loss_fn, unembed
from tests.support.checkpoints import assert_same, load, model, save, state_of
from tests.support.models_for_tests import over_stages
from tests.support.own_schedules import Listed, placements

BY_CHANNEL = {"queue": "channel"}
ORDERS: list[tuple[Any, int, int]] = [
    ("interleaved", 4, 2),
    ("v_shape", 4, 2),
    ("interleaved", 6, 3),
    (Listed((1, 0, 0, 1, 2), 3), 5, 3),
]


@pytest.mark.parametrize(("schedule", "stages", "ranks"), ORDERS, ids=str)
@pytest.mark.parametrize("replicas", [1, 2])
def test_the_same_seed_gives_the_same_model_for_any_schedule(schedule, stages, ranks, replicas):
    expected, generator = built_by_hand()
    torch.manual_seed(5)

    def call(ev: Evaluator, *_: Any) -> dict[int, list[torch.Tensor]]:
        return {s: list(m.state_dict().values()) for s, m in ev.modules.items()}

    found = over_stages(
        ranks,
        call,
        layers=specs,
        replicas=replicas,
        schedule=schedule,
        stages=stages,
        network=BY_CHANNEL,
    )
    for replica in range(replicas):
        own: dict[int, list[torch.Tensor]] = {}
        for held in found[replica * ranks : (replica + 1) * ranks]:
            own |= held
        tensors = [tensor for stage in range(stages) for tensor in own[stage]]
        assert len(tensors) == len(expected)
        assert all(map(torch.equal, tensors, expected))
    assert torch.equal(torch.get_rng_state(), generator)


def tied_often() -> list[Any]:
    """One embedding on the stages 0, 1, 2 and 3 of four: twice on each of two ranks."""

    def embedding(**options: Any) -> TiedLayerSpec:
        return TiedLayerSpec("embedding", nn.Embedding, 5, 4, **options)

    back = {"forward_fn": lambda e, h: (h @ e.weight.T).argmax(-1)}
    return [embedding(), embedding(**back), embedding(), embedding(forward_fn=unembed)]


@pytest.mark.parametrize(("schedule", "stages", "ranks"), ORDERS[:2], ids=str)
def test_layers_tied_on_one_rank_and_on_several_have_the_same_weights(schedule, stages, ranks):
    def call(ev: Evaluator) -> Any:
        result = ev.evaluate(iter(DATA), return_logits=True)
        weights = [p for module in ev.modules.values() for p in module.parameters()]
        assert len({id(weight) for weight in weights}) == 1  # one tensor on each rank
        if ev.rank == 1:
            with torch.no_grad():
                weights[0].mul_(0.5)
        again = ev.evaluate(iter(DATA), return_logits=True)
        return weights[0].detach().clone(), [r.logits for r in (result, again)]

    found = over_stages(
        ranks,
        call,
        layers=tied_often,
        loss_fn=loss_fn,
        schedule=schedule,
        stages=stages,
        network=BY_CHANNEL,
    )
    (weight, _), (other, _) = found
    assert torch.equal(weight, other)
    (first, second), *_ = [logits for _, logits in found if logits[0]]
    for logits, matrix in ((first, weight * 2), (second, weight)):
        tokens = [(matrix[ids] @ matrix.T).argmax(-1) for ids in IDS]
        expected = [matrix[ids] @ matrix.T for ids in tokens]
        assert all(map(torch.equal, logits, expected))


@pytest.mark.parametrize(("schedule", "stages", "ranks"), ORDERS, ids=str)
def test_checkpoints_of_one_schedule_load_with_another(schedule, stages, ranks, tmp_path: Path):
    save(tmp_path / "from one", stages=2)
    built = [model(seed=1) for _ in range(ranks)]

    def rank(end: InMemoryTransport) -> dict[str, torch.Tensor]:
        ev = Evaluator(
            built[end.global_rank], loss_fn=loss_fn, transport=end, schedule=schedule, stages=stages
        )
        ev.load_state_dir(tmp_path / "from one")
        ev.save_state_dict(tmp_path / "from this")
        return {
            name: value
            for stage, module in ev.modules.items()
            for name, value in state_of(list(module), ev.boundaries[stage]).items()
        }

    parts = run_threads(ranks, rank, timeout=60, queue="channel")
    whole = {name: value for part in parts for name, value in part.items()}
    assert_same(whole, state_of(model()))
    assert_same(load(tmp_path / "from this", stages=3), state_of(model()))


def dearest_rank(
    costs: Sequence[float], boundaries: Sequence[int], placement: Sequence[int]
) -> float:
    ranks = [0.0] * len(placement)
    for rank, (start, stop) in zip(placement, pairwise(boundaries), strict=True):
        ranks[rank] += sum(costs[start:stop])
    return max(ranks)


@given(placements(stages=6, ranks=4), st.lists(st.integers(0, 20), min_size=6, max_size=10))
@example((0, 1, 0, 0), [0, 0, 0, 1, 0, 1])  # where no single move helps, though two would
def test_the_dearest_rank_is_as_cheap_as_can_be(placement, costs):
    found = balanced(costs, placement)
    assert len(found) == len(placement) + 1
    assert all(a < b for a, b in pairwise(found))
    cuts = combinations(range(1, len(costs)), len(placement) - 1)
    best = min(dearest_rank(costs, (0, *cut, len(costs)), placement) for cut in cuts)
    assert dearest_rank(costs, found, placement) == best


@given(
    st.lists(st.integers(0, 2), min_size=6, max_size=8),
    st.lists(st.integers(0, 20), min_size=20, max_size=30),
)
def test_a_search_among_many_divisions_ends_no_dearer_than_it_began(placement, costs):
    assert comb(len(costs) - 1, len(placement) - 1) > FEW
    found = balanced(costs, placement)
    assert found[0] == 0
    assert found[-1] == len(costs)
    assert all(a < b for a, b in pairwise(found))
    assert dearest_rank(costs, found, placement) <= dearest_rank(
        costs, balanced(costs, len(placement)), placement
    )


def test_rules_even_out_the_ranks_and_not_the_stages():
    layers = [LayerSpec(nn.Linear, 4, 4) for _ in range(11)] + [LayerSpec(nn.Linear, 4, 24)]
    ring = (0, 1, 0, 1)
    counts = [20.0] * 11 + [120.0]
    for rule, costs in (("parameters", counts), ("profile", counts), ("uniform", [1.0] * 12)):
        found = divide(layers, ring, rule, lambda: counts)
        dearest = dearest_rank(costs, found, ring)
        assert dearest <= sum(costs) / 2 + 10
    assert divide(layers, ring, "parameters") != divide(layers, 4, "parameters")
