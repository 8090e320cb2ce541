"""Shares of a data set: every sample counts once, over all replicas."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from runtime import Evaluator, ShardSampler
from runtime.testing import run_threads
from tests.support.models_for_tests import batches, mlp, one_process


@given(st.integers(0, 40), st.integers(1, 7))
def test_every_sample_is_in_one_share(samples, replicas):
    shares = [ShardSampler(range(samples), replicas, replica) for replica in range(replicas)]
    assert sorted(index for share in shares for index in share) == list(range(samples))
    assert [len(list(share)) for share in shares] == [len(share) for share in shares]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("replica", [-1, 2])
def test_a_replica_that_does_not_exist_is_refused(replica):
    with pytest.raises(ValueError, match=f"replica is {replica} of 2 replicas"):
        ShardSampler(range(3), 2, replica)


def test_replicas_with_unequal_shares_count_every_sample_once():
    layers = mlp()
    inputs, labels = batches([7])[0]
    samples = list(zip(inputs, labels, strict=True))

    def stage(end):
        made = Evaluator(layers, loss_fn=nn.functional.mse_loss, transport=end)
        share = ShardSampler(samples, made.replicas, made.replica)
        result = made.evaluate(DataLoader(samples, batch_size=2, sampler=share))
        return result.loss, sum(result.weights)

    found = run_threads(2, stage, replicas=2)
    shares = [samples[0::2], samples[1::2]]
    losses = []
    for share in shares:
        parts = [share[start : start + 2] for start in range(0, len(share), 2)]
        data = list(DataLoader(share, batch_size=2))
        whole = one_process(layers, data)[1]
        losses += [len(part) * loss for part, loss in zip(parts, whole, strict=True)]
    assert [loss for loss, _ in found] == [math.fsum(losses) / len(samples)] * 4
    assert [weight for _, weight in found] == [4, 4, 3, 3]
