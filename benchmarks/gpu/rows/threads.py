"""Row 1: ranks as threads, a stream each, whose copies run on streams of their own."""

from typing import Any

from torch import nn

from benchmarks.gpu.context import Context
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.report import Found
from benchmarks.gpu.stream_transport import StreamTransport, over_streams
from benchmarks.gpu.workload import Pair, data, differing, layers, one_process, tortured
from runtime import Evaluator

STAGES = (2, 3, 4)


def threads(context: Context) -> Found:
    """Bits equal one process, in both variants."""
    machine, lines, held = context.machine, [], True
    pairs = data(context.size(24, 3))
    for stages in STAGES[: context.size(3, 1)]:
        plain = layers(stages + 1)
        expected = one_process(plain, pairs, machine.device)
        for overlap in (False, True):
            found = _evaluated(machine, stages, plain, pairs, overlap=overlap)
            wrong = differing(found, expected)
            variant = "overlapped" if overlap else "blocking"
            told = f"micro-batches {wrong} differ" if wrong else "bits equal one process"
            lines.append(f"S = {stages}, {variant}: {told}")
            held = held and not wrong
    return Found(held, lines)


def _evaluated(
    machine: Machine, stages: int, plain: list[nn.Module], pairs: list[Pair], *, overlap: bool
) -> Any:
    """What the last stage finds; layers are copied for each stage by the evaluator's `to`."""
    built = tortured(plain, machine)

    def stage(end: StreamTransport) -> Any:
        evaluator = Evaluator(
            built,
            loss_fn=nn.functional.mse_loss,
            partition="uniform",
            overlap=overlap,
            transport=end,
        )
        return evaluator.eval_batch(iter(pairs), return_logits=True, num_micro_batches=len(pairs))

    return over_streams(machine, stages, stage)[-1]
