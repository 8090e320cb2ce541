"""What the processes of multi-process tests do; a new process imports it by name."""

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from runtime import EvalResult, Evaluator, LayerSpec, TiedLayerSpec
from runtime.distributed.grid import make_grid
from runtime.distributed.process_group import process_group
from runtime.failure.guard import Guard
from runtime.transport import Channels, TorchTransport
from runtime.transport.shared_memory import channels as local_channels
from tests.support.exact_cases import CASES, Found, drawn, over_stages
from tests.support.models_for_tests import Data, batches, mlp

TIMEOUT = timedelta(seconds=60)


@dataclass(frozen=True)
class Rounds:
    """Several evaluations with one evaluator: the sizes of the micro-batches of each."""

    sizes: tuple[tuple[int, ...], ...]
    overlap: bool
    channels: Channels | None = None
    hosts: str = ""
    """A letter for each stage, if they are to think that they are on several hosts; `-`: the stage
    has been told to share no memory."""


def evaluate_rounds(rounds: Rounds) -> list[list[EvalResult]]:
    """Results of every stage, by round."""
    torch.set_num_threads(1)
    with process_group(TIMEOUT) as device:
        channels = rounds.channels
        if rounds.hosts:
            host = rounds.hosts[dist.get_rank()]
            local_channels.host_key = lambda: host
            channels = "shared" if host == "-" else None
        transport = TorchTransport(device=device, channels=channels)
        evaluator = Evaluator(
            mlp(),
            loss_fn=nn.functional.mse_loss,
            partition="uniform",
            overlap=rounds.overlap,
            transport=transport,
        )
        results = []
        for sizes in rounds.sizes:
            data = iter(batches(sizes)) if evaluator.is_first or evaluator.is_last else None
            result = evaluator.eval_batch(data, return_logits=True, num_micro_batches=len(sizes))
            results.append(transport.gather_objects(_on_cpu(result)))
        return results


def tied_layers() -> list[Any]:
    """A layer that is the same everywhere, and two that have to share what one of them drew."""
    tied = [TiedLayerSpec("w", nn.Linear, 6, 6) for _ in range(2)]
    return [mlp(1)[0], tied[0], LayerSpec(nn.Tanh), tied[1]]


def evaluate_shards(sizes: tuple[tuple[int, ...], ...]) -> list[tuple[EvalResult, Any]]:
    """Replicas of two stages, given the sizes of the micro-batches of each.

    Returns:
        The result and the state of the stage of every rank.
    """
    torch.set_num_threads(1)
    with process_group(TIMEOUT):
        mesh = make_grid(2, len(sizes))
        replica, stage_id = mesh.get_local_rank("dp"), mesh.get_local_rank("pp")
        layers = tied_layers()
        torch.manual_seed(stage_id)  # replicas draw the same weights, stages do not
        evaluator = Evaluator(
            layers, loss_fn=nn.functional.mse_loss, partition=[0, 2, 4], mesh=mesh
        )
        data = batches(sizes[replica], seed=replica)
        evaluator.evaluate(iter(data))
        if evaluator.is_last:  # the stage before has to learn of it
            with torch.no_grad():
                evaluator.module.get_parameter("3.weight").mul_(0.5)
        result = evaluator.evaluate(iter(data), return_logits=True, logits_to="all")
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, (_on_cpu(result), evaluator.module.state_dict()))
        return everyone


def evaluate_exact_cases(options: dict[str, Any]) -> list[dict[str, list[Found]]]:
    """What every rank finds of all cases, through shared memory and over gloo."""
    torch.set_num_threads(1)
    ways: tuple[Channels, ...] = ("memory", "shared")
    everything = []
    with process_group(TIMEOUT) as device:
        for channels in ways:
            transport = TorchTransport(device=device, channels=channels)
            guard = Guard(transport, timeout=20.0)
            with guard.run():
                found = {
                    f"{name} over {channels}": over_stages(
                        case, drawn(case), transport=transport, guard=guard, **options
                    )
                    for name, case in CASES.items()
                }
                everyone = transport.gather_objects(found)
            everything.append({name: [stage[name] for stage in everyone] for name in found})
    return everything


def _on_cpu(result: EvalResult) -> EvalResult:
    logits = None if result.logits is None else tuple(y.cpu() for y in result.logits)
    return replace(result, logits=logits)


MESSAGE = [
    torch.tensor([True, False, True]),
    torch.arange(5, dtype=torch.int16),
    torch.arange(6.0).reshape(2, 3).to(torch.float8_e4m3fn),
    torch.zeros(0, 3),
    torch.tensor(2.5, dtype=torch.float64),
]


def exchange(channels: Channels) -> list[Any]:
    """Move a message around the ring 0 -> 1 -> 2 -> 0, alone and in a group; then collectives.

    Returns:
        Of every stage: its id, whether all was right, the loss of stage 1, and whether messages
        come through shared memory.
    """
    torch.set_num_threads(1)
    with process_group(TIMEOUT) as device:
        transport = TorchTransport(device=device, channels=channels)
        here, count = transport.rank, transport.ranks
        after, before = (here + 1) % count, (here - 1) % count
        transport.connect(receives_from=[before], sends_to=[after])
        message = [tensor.to(device) for tensor in MESSAGE]
        places = [torch.empty_like(tensor) for tensor in message]
        again = [torch.empty_like(tensor) for tensor in message]
        send = transport.post_send(message, after)
        receive = transport.post_receive(places, before)
        transport.wait(receive)
        transport.wait(send)
        transport.start_group()
        group = [transport.post_receive(again, before), transport.post_send(message, after)]
        transport.end_group()
        for pending in group:
            transport.wait(pending)
        loss = torch.tensor([float(here)], dtype=torch.float64, device=device)
        transport.broadcast(loss, source=1)
        same = all(
            a.reshape(-1).view(torch.uint8).equal(b.reshape(-1).view(torch.uint8))
            for a, b in zip(message + message, places + again, strict=True)
        )
        large = transport.gather_objects("x" * 3000 * here)  # some need a second round, some not
        same = same and large == ["x" * 3000 * stage for stage in range(count)]
        memory = transport.receive_memory(8)
        shared = transport._local.memory.extent([memory]) is not None
        return transport.gather_objects((here, same, float(loss), shared))


def fail(how: str) -> None:
    """Rank 1 fails in the given way, while rank 0 waits for it."""
    import os

    with process_group(TIMEOUT) as device:
        transport = TorchTransport(device=device)
        if transport.rank == 1:
            if how == "raise":
                raise ArithmeticError("not today")
            os._exit(3)
        transport.wait(transport.post_receive([torch.zeros(1, device=device)], 1))


def evaluate_metrics(data: list[tuple[torch.Tensor, torch.Tensor]]) -> list[dict[str, Any]]:
    """A metric of torchmetrics over two stages: what each gets."""
    from torchmetrics.classification import MulticlassAccuracy

    torch.set_num_threads(1)
    with process_group(TIMEOUT) as device:
        transport = TorchTransport(device=device)
        evaluator = Evaluator(
            mlp(),
            metrics={"accuracy": MulticlassAccuracy(6, average="micro")},
            partition="uniform",
            transport=transport,
        )
        return transport.gather_objects(evaluator.evaluate(iter(data)).metrics)


class Block(nn.Module):
    """Two linear layers and what goes past them: what tensor parallelism is made for."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.down(torch.relu(self.up(x)))
        return result


def blocks() -> list[nn.Module]:
    """The same in every process."""
    torch.manual_seed(3)
    return [Block() for _ in range(4)]


def evaluate_parallel_modules(work: tuple[Data, list[Data]]) -> tuple[list[float], list[float]]:
    """Two stages in four processes, whose layers are parallel in themselves.

    Args:
        work: Data for layers of which each of two ranks has a part; and for two replicas over which
            the weights are sharded, the data of each.

    Returns:
        The loss on every rank, in both.
    """
    torch.set_num_threads(1)
    data, shards = work
    with process_group(TIMEOUT):
        return _tensor_parallel(data), _sharded(shards)


def _tensor_parallel(data: Data) -> list[float]:
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "tp"))
    layers = blocks()
    for layer in layers:
        plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        parallelize_module(layer, mesh["tp"], plan)
    return _losses(layers, mesh, data)


def _sharded(shards: list[Data]) -> list[float]:
    from torch.distributed.fsdp import fully_shard

    mesh = make_grid(2, len(shards))
    layers = blocks()
    stage_id = mesh.get_local_rank("pp")
    for layer in layers[2 * stage_id : 2 * stage_id + 2]:
        fully_shard(layer, mesh=mesh["dp"], reshard_after_forward=True)
    return _losses(layers, mesh, shards[mesh.get_local_rank("dp")])


def _losses(layers: list[nn.Module], mesh: DeviceMesh, data: Data) -> list[float]:
    """That of each rank, in the second of two evaluations."""
    evaluator = Evaluator(
        layers, loss_fn=nn.functional.mse_loss, mesh=mesh, partition="uniform", timeout=20.0
    )
    evaluator.evaluate(data)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, evaluator.evaluate(data).loss)
    return everyone


def build_alike(boundaries: list[int]) -> list[tuple[list[torch.Tensor], torch.Tensor, bool]]:
    """Build a stage of `tests.runtime.modules.test_building.specs`; then one that draws nothing.

    Returns:
        Of every rank: the weights of its stage; the state of the generator after it; and whether a
        generator was left as it was by further evaluators, for which no two ranks had one seed
        (that of the first rank draws).
    """
    from tests.runtime.modules.test_building import specs

    torch.set_num_threads(1)
    with process_group(TIMEOUT):
        rank, size = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(5)
        evaluator = Evaluator(specs(), partition=boundaries)
        weights = [tensor.clone() for tensor in evaluator.module.state_dict().values()]
        after = torch.get_rng_state()

        store = dist.distributed_c10d._get_default_store()

        def meeting(index: int) -> nn.Module:
            """A layer that can only be built while those of all other stages are."""
            store.set(f"building {index}", "now")
            store.wait([f"building {other}" for other in range(size)], TIMEOUT)
            return nn.Linear(2, 2, device="meta").to_empty(device="cpu")

        torch.manual_seed(100 + rank)
        before = torch.get_rng_state()
        Evaluator([LayerSpec(meeting, index) for index in range(size)], partition="uniform")
        Evaluator([LayerSpec(nn.Linear, 2, 2) for _ in range(size)], partition="uniform")
        kept = torch.equal(torch.get_rng_state(), before) or rank == 0
        everyone: list[Any] = [None] * size
        dist.all_gather_object(everyone, (weights, after, kept))
        return everyone
