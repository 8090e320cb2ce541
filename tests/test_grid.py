"""Who takes part: processes of launchers, meshes in any order, over some of the processes."""

import pytest
from torch import nn

from runtime import AgreementError, Evaluator
from tests.models_for_tests import batches, mlp, one_process

ENVIRONMENTS = [
    ({"RANK": "1", "WORLD_SIZE": "2"}, r"torchrun \(WORLD_SIZE\) started 2 processes"),
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "3"}, r"Slurm \(SLURM_NTASKS\) started 3 processes"),
    (
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "4"},
        r"Open MPI \(OMPI_COMM_WORLD_SIZE\) started 4 processes",
    ),
]


@pytest.mark.parametrize(("environment", "said"), ENVIRONMENTS)
def test_one_of_several_processes_evaluates_the_whole_model_only_if_it_is_told_so(
    environment, said, monkeypatch
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(AgreementError, match=said + ".*init_process_group.*stages=1"):
        Evaluator(mlp(), loss_fn=nn.functional.mse_loss)
    data = batches([2, 3])
    alone = Evaluator(mlp(), loss_fn=nn.functional.mse_loss, stages=1)
    assert list(alone.evaluate(data).losses) == one_process(mlp(), data)[1]
