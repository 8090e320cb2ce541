"""Data-parallel replicas: each has its share of the data, and the loss is that of all of it."""

import math
from typing import Any

import pytest

from runtime import AgreementError, DataError, EvalResult, Evaluator, RemoteError
from runtime.planning.sources import CHUNK
from runtime.testing import InMemoryNetwork
from tests.support.models_for_tests import Data, batches, mlp, one_process, over_stages


def shards(*sizes: list[int]) -> list[Data]:
    return [batches(own, seed) for seed, own in enumerate(sizes)]


def average(data: list[Data]) -> float:
    """The loss of one process over everything."""
    everything = [pair for shard in data for pair in shard]
    losses = one_process(mlp(), everything)[1]
    weights = [len(y) for _, y in everything]
    return math.fsum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)


def evaluate(data: list[Data], stages: int = 2, **options: Any) -> list[EvalResult]:
    def call(ev: Evaluator, replica: int) -> EvalResult:
        return ev.evaluate(iter(data[replica]), **options)

    return over_stages(stages, call, replicas=len(data))


@pytest.mark.parametrize("stages", [1, 2])
def test_the_loss_is_that_of_all_data_when_shards_are_unequal(stages):
    data = shards([3, 1, 4], [1], [2, 2])
    expected = average(data)
    results = evaluate(data, stages)
    for rank, result in enumerate(results):
        own = data[rank // stages]
        assert result.loss == expected
        assert result.micro_batches == len(own)
        assert result.losses == tuple(one_process(mlp(), own)[1])


def test_the_order_of_the_shards_does_not_change_a_bit():
    data = shards([3, 1, 4, 7], [1], [2, 2, 9, 5, 6])
    assert {result.loss for result in evaluate(data)} == {
        result.loss for result in evaluate(data[::-1])
    }


@pytest.mark.parametrize("lengths", [(CHUNK + 1, 3), (CHUNK, 0), (0, 2 * CHUNK), (1, CHUNK)])
def test_a_replica_that_runs_dry_waits_for_the_others(lengths):
    data = shards(*([1 + m % 2 for m in range(length)] for length in lengths))
    expected = average(data)
    for rank, result in enumerate(evaluate(data, return_logits=True, logits_to="all")):
        assert result.loss == expected
        assert result.micro_batches == lengths[rank // 2]
        assert len(result.logits) == lengths[rank // 2]


def test_a_replica_that_never_had_data_learns_the_loss_and_has_no_losses():
    data = shards([], [2, 3])
    for result in evaluate(data)[:2]:
        assert result.loss == average(data)
        assert result.losses == ()


def test_without_reduction_a_replica_without_data_has_nothing():
    first, *_ = evaluate(shards([], [2, 3]), reduce_output=None)
    assert first.loss is None
    assert first.losses == ()


@pytest.mark.parametrize(
    ("reduction", "whole"),
    [("sum", math.fsum), ("mean_of_means", lambda losses: math.fsum(losses) / len(losses))],
)
def test_other_reductions_are_over_all_micro_batches_of_all_replicas(reduction, whole):
    data = shards([3, 1], [2, 2, 5])
    losses = [loss for shard in data for loss in one_process(mlp(), shard)[1]]
    for result in evaluate(data, reduce_output=reduction):
        assert result.loss == whole(losses)


def test_no_data_in_any_replica_is_an_error_in_all():
    def call(ev: Evaluator, _: int) -> str:
        with pytest.raises(DataError) as caught:
            ev.evaluate([])
        return str(caught.value)

    expected = "the data holds no micro-batch, needed at least one"
    assert over_stages(2, call, replicas=2) == [expected] * 4


def errors(data: list[Data], asked: list[int]) -> list[Exception]:
    def call(ev: Evaluator, replica: int) -> Exception:
        with pytest.raises((AgreementError, RemoteError, LookupError)) as caught:
            ev.eval_batch(iter(data[replica]), num_micro_batches=asked[replica])
        return caught.value

    return over_stages(2, call, replicas=2)


def test_replicas_that_ask_for_different_numbers_are_told():
    expected = "num_micro_batches differs: 2 on stage 0 of replica 0, 3 on stage 0 of replica 1"
    found = errors(shards([1] * 4, [1] * 4), [2, 3])
    assert [str(error) for error in found] == [expected] * 4


def test_a_replica_whose_data_ends_early_is_named_in_all():
    expected = "the data of stage 0 of replica 1 ended after 3 micro-batches, needed 4"
    found = errors(shards([1] * 4, [1] * 3), [4, 4])
    assert [str(error) for error in found] == [expected] * 4


def test_a_failure_before_the_first_transfer_reaches_all_replicas():
    class Broken(list):
        def __iter__(self) -> Any:
            yield from batches([1])
            raise LookupError("disk gone")

    found = errors([batches([1] * 2), Broken()], [2, 2])
    kinds = [type(error) for error in found]
    assert kinds[:2] == [RemoteError, RemoteError]
    assert sorted(kind.__name__ for kind in kinds[2:]) == ["LookupError", "RemoteError"]
    assert "of replica 1 failed at the fetching of micro-batches: LookupError" in str(found[0])


def test_after_an_error_the_replicas_still_work():
    data = shards([2, 3], [4, 1])

    def call(ev: Evaluator, replica: int) -> float:
        with pytest.raises(AgreementError):
            ev.eval_batch(iter(data[replica]), num_micro_batches=2 + replica)
        return ev.eval_batch(iter(data[replica]), num_micro_batches=2).loss

    assert over_stages(2, call, replicas=2) == [average(data)] * 4


def test_the_number_of_replicas_has_to_be_that_of_the_grid():
    alone = InMemoryNetwork(1).endpoint(0)
    with pytest.raises(AgreementError, match="replicas is 3, but 1 are connected"):
        Evaluator(mlp(), transport=alone, replicas=3)
    expected = r"stages is 2 and replicas is 2, but torch\.distributed is not initialised: start 4"
    with pytest.raises(AgreementError, match=expected):
        Evaluator(mlp(), stages=2, replicas=2)
