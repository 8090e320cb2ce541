"""Row 6: matrix products beside a receive that was posted ahead and spins, by its CTAs."""

from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore

from benchmarks.gpu.context import Context
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.ranks import run_ranks, values_of
from benchmarks.gpu.report import Found
from runtime.transport import NcclSettings
from runtime.transport.torch_distributed.groups.backends import Timeouts, bounded, new_group
from runtime.transport.torch_distributed.groups.point_to_point import Call, begin
from schemas import Direction

CTAS = (2, 4, 8, 16, 32)
TIMES = 20
MESSAGE = 8 * 2**20
SLOWER = 1.10
"""How much longer products may take beside the default's receive."""


def spinning(context: Context) -> Found:
    """How much slower products are, for each number of CTAs."""
    argument = (CTAS, 8192, TIMES) if not context.machine.dry else (CTAS[:2], 64, 2)
    found = values_of(run_ranks(2, _measured, argument, context.machine, context.approach, 40.0))[0]
    alone = found.pop(0)
    lines = [f"alone: {alone * 1e3:.2f} ms"]
    lines += [
        f"beside a receive of {ctas} CTAs: {seconds * 1e3:.2f} ms ({seconds / alone:.2f}x)"
        for ctas, seconds in found.items()
    ]
    default = NcclSettings().max_ctas or max(found)
    held = context.machine.dry or found[default] <= SLOWER * alone
    return Found(held, lines, {"alone": alone, "seconds_by_ctas": found})


def _measured(machine: Machine, argument: tuple[tuple[int, ...], int, int]) -> dict[int, float]:
    """Seconds of a product on rank 0, by the CTAs of the receive beside it; 0: there is none."""
    all_ctas, size, times = argument
    a = torch.randn(size, size, device=machine.device)
    kind = "gloo" if machine.dry else "nccl"
    store = dist.distributed_c10d._get_default_store()
    rank, found = dist.get_rank(), dict[int, float]()

    def product() -> Any:
        return a @ a

    if rank == 0:
        machine.seconds(product, times)
        found[0] = machine.seconds(product, times)
    for ctas in all_ctas:
        settings = NcclSettings(max_ctas=ctas)
        timeouts = Timeouts(bounded(30), bounded(30))
        prefixed = PrefixStore(f"spin {ctas}", store)
        group = new_group(kind, prefixed, rank, 2, machine.device, timeouts, settings)
        message = torch.zeros(MESSAGE, dtype=torch.uint8, device=machine.device)
        if rank == 0:
            _exchange(machine, group, message)
            work = begin(group, Call(Direction.RECV, message, 1))
            found[ctas] = _beside(machine, product, times)
            store.set(f"measured {ctas}", "")
        else:
            _exchange(machine, group, message)
            store.wait([f"measured {ctas}"])  # the host waits; nothing of this rank runs
            work = begin(group, Call(Direction.SEND, message, 0))
        _wait(machine, work)
        machine.synchronize()
        group.shutdown()
    return found


def _beside(machine: Machine, product: Any, times: int) -> float:
    """Seconds of a product on this stream; what spins beside it is not waited for."""
    stream = machine.current_stream()
    if machine.dry:
        return machine.seconds(product, times)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record(stream)
    for _ in range(times):
        product()
    end.record(stream)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / times


def _exchange(machine: Machine, group: dist.ProcessGroup, message: torch.Tensor) -> None:
    """Connect the channel from rank 1 to 0: in the first call of a direction the host waits."""
    rank = group.rank()
    direction = Direction.SEND if rank else Direction.RECV
    _wait(machine, begin(group, Call(direction, message, 1 - rank)))
    machine.synchronize()


def _wait(machine: Machine, work: dist.Work) -> None:
    if machine.dry:
        work.wait()
    else:
        work.block_current_stream()
