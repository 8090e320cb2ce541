"""A pipeline over several hosts computes what one process does, and finds its way between them."""

import pytest
from torch import nn

from runtime import Evaluator
from tests.hosts.work import SIZES, data, evaluate_once, watch_the_process_of_rank_1
from tests.support.hosts import Hosts, missing
from tests.support.models_for_tests import mlp
from tests.support.ranks_on_hosts import RanksOnHosts

pytestmark = [pytest.mark.hosts, pytest.mark.skipif(missing() != "", reason=missing())]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("where", [(0, 0, 1, 1), (0, 1, 2, 2)])
def test_ranks_of_two_and_three_hosts_give_the_logits_of_one_process(where, overlap):
    with Evaluator(mlp(), loss_fn=nn.functional.mse_loss) as alone:
        expected = alone.eval_batch(iter(data()), True, num_micro_batches=len(SIZES))
    with Hosts(1 + max(where)) as hosts, RanksOnHosts(hosts, where, evaluate_once, overlap) as run:
        results = [ended.value or ended for ended in run.told()]
    assert {result.loss for result in results} == {expected.loss}
    assert results[-1].logits == [each.tolist() for each in expected.logits]
    for rank, result in enumerate(results):
        neighbours = [r for r in (rank - 1, rank + 1) if 0 <= r < len(where)]
        here = [peer for peer in neighbours if where[peer] == where[rank]]
        assert result.shares_memory_with == here, f"rank {rank}"


@pytest.mark.parametrize("cut_off", [False, True])
def test_a_process_of_another_host_is_known_to_have_ended_only_if_its_host_says_so(cut_off):
    with Hosts(2) as hosts, RanksOnHosts(hosts, (0, 1), watch_the_process_of_rank_1, 3.0) as run:
        assert run.told([0]) == ["reached"]
        if cut_off:
            hosts.cut_off(1)
        run.processes[1].kill()
        (ended,) = run.told([0])
    assert (ended.value, ended.text) == (not cut_off, "")
