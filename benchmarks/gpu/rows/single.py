"""Row 8: one stage: loads from pinned and other memory, where logits go, and the reference."""

from types import SimpleNamespace
from typing import Any, get_args

import torch
from torch import nn

from benchmarks.gpu.context import Context
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.report import Found
from benchmarks.gpu.workload import Pair, data, differing, layers, one_process
from runtime import Evaluator
from runtime.language.perplexity.reference import LogitsDigests, reference
from runtime.transport import SingleProcessTransport
from schemas import LogitsTo


def single(context: Context) -> Found:
    """Bits equal the model's, however data comes and logits go."""
    machine = context.machine
    plain, pairs = layers(4), data(context.size(32, 3))
    expected = one_process(plain, pairs, machine.device)
    lines, held = [], True
    for memory in ("pinned", "other"):
        pin = _pinned(machine) if memory == "pinned" else lambda tensor: tensor
        loaded = [tuple(map(pin, pair)) for pair in pairs]
        for to in get_args(LogitsTo):
            for device in (None, "cpu"):
                evaluator = _evaluator(machine, plain)
                result: Any = evaluator.eval_batch(
                    iter(loaded),
                    return_logits=True,
                    num_micro_batches=len(pairs),
                    logits_to=to,
                    logits_device=device,
                )
                wrong = differing(result, expected)
                where = result.logits[0].device
                if wrong or (device == "cpu" and where.type != "cpu"):
                    lines.append(f"{memory} memory, logits to {to}, {device}: {wrong} on {where}")
                    held = False
    lines += [] if lines else ["bits equal the model's in all 12 ways"]
    same, loss = _verified(machine, plain, pairs)
    lines.append(f"the reference on the same device: {same} of {len(pairs)} logits, loss {loss}")
    return Found(held and same == len(pairs), lines)


def _pinned(machine: Machine) -> Any:
    return (lambda tensor: tensor) if machine.dry else torch.Tensor.pin_memory


def _evaluator(machine: Machine, plain: list[nn.Module]) -> Evaluator:
    return Evaluator(
        plain,
        loss_fn=nn.functional.mse_loss,
        stages=1,
        transport=SingleProcessTransport(machine.device),
    )


class _Model(nn.Module):
    """Called as models of transformers are."""

    def __init__(self, plain: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*plain)

    def forward(self, *, input_ids: torch.Tensor, use_cache: bool) -> Any:
        assert not use_cache
        return SimpleNamespace(logits=self.layers(input_ids))


def _verified(machine: Machine, plain: list[nn.Module], pairs: list[Pair]) -> tuple[int, str]:
    """Micro-batches with the reference's bits, and whether the loss is its, as of `--verify`."""
    digests = LogitsDigests()
    result = _evaluator(machine, plain).eval_batch(
        iter(pairs), num_micro_batches=len(pairs), on_logits=digests, logits_device="cpu"
    )

    found = reference(_Model(plain), pairs, nn.functional.mse_loss, lambda _: 1.0, machine.device)
    same = sum(a == b for a, b in zip(digests.digests, found.digests, strict=True))
    return same, "equal" if result.loss == found.loss else f"{result.loss} and {found.loss}"
