"""Row 9: what a micro-batch costs where the layers do nothing."""

from typing import Any

from torch import nn

from benchmarks.gpu.context import Context
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.ranks import LeftOut, run_ranks, values_of
from benchmarks.gpu.report import Found
from benchmarks.gpu.workload import data
from runtime import Evaluator
from runtime.transport import SingleProcessTransport, TorchTransport, Transport


def overhead(context: Context) -> Found:
    """Microseconds of a micro-batch, S = 1 and 2."""
    micro_batches = context.size(2000, 4)
    alone = _seconds(context.machine, SingleProcessTransport(context.machine.device), micro_batches)
    lines, numbers = [f"S = 1: {alone * 1e6:.0f} us a micro-batch"], {"S = 1": alone}
    try:
        answers = run_ranks(2, _measured, micro_batches, context.machine, context.approach, 25.0)
        for overlap, seconds in values_of(answers)[-1].items():
            variant = "overlapped" if overlap else "blocking"
            lines.append(f"S = 2, {variant}: {seconds * 1e6:.0f} us a micro-batch")
            numbers[f"S = 2, {variant}"] = seconds
    except LeftOut as error:
        lines.append(f"S = 2: {error}")
    return Found(True, lines, numbers)


def _measured(machine: Machine, micro_batches: int) -> dict[bool, float]:
    transport = TorchTransport(device=machine.device)
    found = {o: _seconds(machine, transport, micro_batches, overlap=o) for o in (False, True)}
    transport.close()
    return found


def _seconds(
    machine: Machine, transport: Transport, micro_batches: int, *, overlap: bool = True
) -> float:
    pair = data(1, 1, 16)[0]
    with Evaluator(
        [nn.Identity() for _ in range(transport.ranks)],
        loss_fn=nn.functional.mse_loss,
        partition="uniform",
        overlap=overlap,
        transport=transport,
    ) as evaluator:

        def evaluate() -> Any:
            return evaluator.eval_batch(
                iter([pair] * micro_batches), num_micro_batches=micro_batches
            )

        evaluate()
        return machine.seconds(evaluate) / micro_batches
