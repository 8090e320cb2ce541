"""What the processes of multi-process tests do; a new process imports it by name."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from runtime import EvalResult, Evaluator
from runtime.process_group import process_group
from runtime.transport import TorchTransport
from tests.models_for_tests import batches, mlp

TIMEOUT = timedelta(seconds=60)


@dataclass(frozen=True)
class Rounds:
    """Several evaluations with one evaluator: the sizes of the micro-batches of each."""

    sizes: tuple[tuple[int, ...], ...]
    overlap: bool


def evaluate_rounds(rounds: Rounds) -> list[list[EvalResult]]:
    """Results of every stage, by round."""
    torch.set_num_threads(1)
    with process_group(TIMEOUT) as device:
        transport = TorchTransport(device=device)
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


def _on_cpu(result: EvalResult) -> EvalResult:
    logits = None if result.logits is None else tuple(y.cpu() for y in result.logits)
    return EvalResult(result.micro_batches, result.loss, result.losses, result.weights, logits)


MESSAGE = [
    torch.tensor([True, False, True]),
    torch.arange(5, dtype=torch.int16),
    torch.arange(6.0).reshape(2, 3).to(torch.float8_e4m3fn),
    torch.zeros(0, 3),
    torch.tensor(2.5, dtype=torch.float64),
]


def exchange(_: None) -> list[Any]:
    """Move a message around the ring 0 -> 1 -> 2 -> 0, alone and in a group; then collectives."""
    torch.set_num_threads(1)
    with process_group(TIMEOUT) as device:
        transport = TorchTransport(device=device)
        here, count = transport.stage_id, transport.stages
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
        transport.sum_over_replicas(loss)
        same = all(
            a.reshape(-1).view(torch.uint8).equal(b.reshape(-1).view(torch.uint8))
            for a, b in zip(message + message, places + again, strict=True)
        )
        return transport.gather_objects((here, same, float(loss)))


def fail(how: str) -> None:
    """Rank 1 fails in the given way, while rank 0 waits for it."""
    import os

    with process_group(TIMEOUT) as device:
        transport = TorchTransport(device=device)
        if transport.stage_id == 1:
            if how == "raise":
                raise ArithmeticError("not today")
            os._exit(3)
        transport.wait(transport.post_receive([torch.zeros(1, device=device)], 1))
