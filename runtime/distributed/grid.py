"""The grid: data-parallel replicas of a pipeline, as a mesh of processes.

::

                 pp 0     pp 1     pp 2
        dp 0    rank 0   rank 1   rank 2      one replica
        dp 1    rank 3   rank 4   rank 5

The ranks of a replica are neighbours, so that on machines with several GPUs activations
travel the short way. The sums of an evaluation travel along `dp`.
"""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from runtime.distributed.launch_environment import processes_of_launcher
from runtime.failure.errors import AgreementError
from runtime.transport import Channels, SingleProcessTransport, TorchTransport, Transport
from runtime.transport.torch_distributed.groups.backends import KINDS, backend_of, default_device

DATA, PIPELINE = "dp", "pp"


def make_grid(ranks: int | None = None, replicas: int | None = None) -> DeviceMesh:
    """The mesh `("dp", "pp")` over all processes of the default group. All have to call this.

    Args:
        ranks: Of each pipeline; default: the processes divided by `replicas`.
        replicas: Default: one.

    Raises:
        AgreementError: there are more or fewer processes than ranks x replicas.
    """
    assert dist.group.WORLD is not None
    device = default_device(dist.group.WORLD).type
    shape = _grid_shape(ranks, replicas)
    return init_device_mesh(device, shape, mesh_dim_names=(DATA, PIPELINE))


def transport_over(
    mesh: DeviceMesh, device: torch.device | None = None, *, channels: Channels | None = None
) -> TorchTransport:
    """The transport of this process's place in a mesh.

    Args:
        mesh: Of all processes or some, with a dimension `"pp"`, and `"dp"` if there are replicas.
            Ranks and replicas are in the mesh's order, whatever the global ranks. Further
            dimensions (tensor parallelism, say) are the business of the layers.
        device: Where activations live; see `TorchTransport`.
        channels: What activations travel through; see `TorchTransport`.

    Raises:
        AgreementError: the mesh has no dimension `"pp"`, or does not hold this process.
    """
    names = mesh.mesh_dim_names or ()
    if PIPELINE not in names:
        raise AgreementError(f"mesh has the dimensions {names}, needed one named {PIPELINE!r}")
    place = mesh.get_coordinate()
    if place is None:
        raise AgreementError(
            f"rank {dist.get_rank()} is none of the mesh {mesh.mesh.tolist()}: only the processes "
            "of a mesh make an evaluator over it"
        )
    grid = mesh.mesh
    for dimension, name in reversed(list(enumerate(names))):
        if name not in (DATA, PIPELINE):
            grid = grid.select(dimension, place[dimension])
    kept = [name for name in names if name in (DATA, PIPELINE)]
    others = [f"{name}={at}" for name, at in zip(names, place, strict=True) if name not in kept]
    if kept == [PIPELINE, DATA]:
        grid = grid.T
    return TorchTransport(
        mesh.get_group(PIPELINE),
        device=device,
        replicas=mesh.get_group(DATA) if DATA in kept else None,
        channels=channels,
        grid=grid.reshape(-1, grid.shape[-1]).tolist(),
        name=", ".join(others) or None,
    )


def connected(
    transport: Transport | None,
    ranks: int | None,
    replicas: int | None,
    mesh: DeviceMesh | None,
    channels: Channels | None,
) -> Transport:
    """The transport of an evaluator: the one it is given, or one over the processes there are.

    A process is alone if nothing says that there are others, or if `ranks` is 1.

    Raises:
        AgreementError: the processes there are do not make such a grid.
        LaunchError: a launcher's environment says half of it.
        ValueError: both a transport and channels are given.
    """
    if transport is not None and channels is not None:
        raise ValueError(f"channels is {channels!r}, but the transport has channels already")
    found = transport or _over_all_processes(ranks, replicas, mesh, channels)
    if ranks not in (None, found.ranks):
        raise AgreementError(f"stages is {ranks}, but {found.ranks} processes are connected")
    if replicas not in (None, found.replicas):
        raise AgreementError(f"replicas is {replicas}, but {found.replicas} are connected")
    return found


def _over_all_processes(
    ranks: int | None, replicas: int | None, mesh: DeviceMesh | None, channels: Channels | None
) -> Transport:
    if mesh is not None:
        return transport_over(mesh, channels=channels)
    if not (dist.is_available() and dist.is_initialized()):
        count = (ranks or 1) * (replicas or 1)
        if count == 1:
            if ranks is None and (others := processes_of_launcher()) is not None:
                launcher, processes = others
                raise AgreementError(
                    f"{launcher} started {processes} processes, but torch.distributed is not "
                    "initialised: call init_process_group first, or pass stages=1 if each of them "
                    "is to evaluate the whole model by itself"
                )
            return SingleProcessTransport()
        raise AgreementError(
            f"{_asked(ranks, replicas)}, but torch.distributed is not initialised: start {count} "
            "processes (torchrun) and call init_process_group first"
        )
    if (replicas or 1) == 1 and ranks in (None, dist.get_world_size()):
        return TorchTransport(channels=channels)
    assert dist.group.WORLD is not None
    if backend_of(dist.group.WORLD, default_device(dist.group.WORLD)) not in KINDS:
        return transport_over(make_grid(ranks, replicas), channels=channels)
    # Without a mesh, whose groups are communicators on NCCL that nothing would go through.
    count, length = _grid_shape(ranks, replicas)
    grid = [list(range(first, first + length)) for first in range(0, count * length, length)]
    return TorchTransport(channels=channels, grid=grid)


def _grid_shape(ranks: int | None, replicas: int | None) -> tuple[int, int]:
    """Replicas, and ranks of each, of a grid over all processes."""
    processes = dist.get_world_size()
    replicas = replicas or 1
    ranks = ranks or max(1, processes // replicas)
    if ranks * replicas != processes:
        copies = f"{replicas} replicas of {ranks} stages" if replicas > 1 else f"{ranks} stages"
        raise AgreementError(f"{copies} for {processes} processes, needed {ranks * replicas}")
    return replicas, ranks


def _asked(ranks: int | None, replicas: int | None) -> str:
    asked = {"stages": ranks, "replicas": replicas}
    return " and ".join(f"{name} is {value}" for name, value in asked.items() if value)
