"""Who takes part: processes of launchers, meshes in any order, over some of the processes."""

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from runtime import AgreementError, Evaluator
from runtime.transport import TorchTransport, TransportError
from runtime.transport.torch_distributed.groups.backends import backend_of
from tests.support.models_for_tests import Data, batches, mlp, one_process
from tests.support.ranks import Said, attempt, run_ranks

TIMEOUT = 45.0
DATA = batches([2, 3, 1])


class Raises(nn.Module):
    """Hands its input on, or raises."""

    now = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.now:
            raise ArithmeticError("not now")
        return x


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


def failing_then_well(_: None) -> tuple[Said, Said]:
    """A layer of stage 1 raises, and then does not."""
    layers = [*mlp(2), Raises()]
    made = Evaluator(layers, loss_fn=nn.functional.mse_loss, partition=[0, 1, 3], timeout=TIMEOUT)
    layers[-1].now = True
    first = attempt(lambda: made.evaluate(DATA))
    layers[-1].now = False
    return first, attempt(lambda: list(made.evaluate(DATA).losses))


@pytest.mark.parametrize("backend", [None, "cpu:gloo"])
def test_failures_are_told_however_the_process_group_names_its_backend(backend):
    right = Said(value=one_process(mlp(2), DATA)[1])
    answers = run_ranks(2, failing_then_well, backend=backend)
    assert [after for _, after in answers] == [right, right]
    (told, _), (origin, _) = answers
    assert (told.error, origin.error) == ("RemoteError", "ArithmeticError")
    assert "stage 1 failed at" in told.text


def in_order_of_the_mesh(ranks: list[Any]) -> Any:
    names = ("pp",) if isinstance(ranks[0], int) else ("dp", "pp")
    mesh = DeviceMesh("cpu", ranks, mesh_dim_names=names)
    try:
        made = Evaluator(mlp(), loss_fn=nn.functional.mse_loss, mesh=mesh, timeout=TIMEOUT)
    except AgreementError as error:
        return str(error)
    replica = mesh.get_coordinate()[0] if len(names) > 1 else 0
    data = DATA if replica == 0 else DATA[:1]
    result = made.evaluate(data, return_logits=True)
    return made.stage_id, result.loss, result.logits is not None


def average(data: Data) -> float:
    """What one process gives."""
    losses = one_process(mlp(), data)[1]
    sizes = [len(inputs) for inputs, _ in data]
    return math.fsum(n * x for n, x in zip(sizes, losses, strict=True)) / sum(sizes)


def test_stages_follow_the_order_of_the_mesh():
    loss = average(DATA)
    assert run_ranks(2, in_order_of_the_mesh, [1, 0]) == [(1, loss, True), (0, loss, False)]


def test_replicas_and_stages_follow_the_order_of_the_mesh():
    loss = average([*DATA, *DATA[:1]])
    found = run_ranks(4, in_order_of_the_mesh, [[3, 0], [1, 2]])
    assert [stage for stage, _, _ in found] == [1, 0, 1, 0]
    assert [value for _, value, _ in found] == pytest.approx([loss] * 4, rel=1e-12)


def test_a_mesh_over_some_processes_leaves_the_others_out():
    answers = run_ranks(3, in_order_of_the_mesh, [2, 0])
    loss = average(DATA)
    assert answers[::2] == [(1, loss, True), (0, loss, False)]
    assert answers[1].startswith("rank 1 is none of the mesh [2, 0]: only the processes of a mesh")


def test_replicas_over_some_processes_leave_the_others_out():
    answers = run_ranks(3, in_order_of_the_mesh, [[2], [0]])
    loss = average([*DATA, *DATA[:1]])
    assert [stage for stage, _, _ in answers[::2]] == [0, 0]
    assert [value for _, value, _ in answers[::2]] == pytest.approx([loss] * 2, rel=1e-12)
    assert answers[1].startswith("rank 1 is none of the mesh [[2], [0]]")


def test_a_group_without_a_backend_for_the_device_is_refused(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group(store=store, rank=0, world_size=1)
    try:
        with pytest.raises(TransportError, match="no backend for meta, needed one"):
            TorchTransport(device=torch.device("meta"))
        assert backend_of(dist.group.WORLD, torch.device("cpu")) == "gloo"
    finally:
        dist.destroy_process_group()
