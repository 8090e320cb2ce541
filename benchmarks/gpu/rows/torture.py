"""Rows 2 and 3: the same torture over NCCL; and what memory and the host's lead do as M grows."""

from typing import Any

import torch
from torch import nn

from benchmarks.gpu.context import Context
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.ranks import run_ranks, values_of
from benchmarks.gpu.report import Found
from benchmarks.gpu.workload import data, differing, layers, one_process, tortured
from runtime import Evaluator
from runtime.device import Clock, Mark
from runtime.failure.detection.instruction_pointer import LEAD
from runtime.transport import Channels, TorchTransport
from schemas import ForwardPass, Placed

ALL_CHANNELS: tuple[Channels, ...] = ("shared", "per-edge")
TIMEOUT = 20.0


def over_nccl(context: Context) -> Found:
    """Bits equal one process: S = 2 and 3, each kind of channels, both variants."""
    lines, held = [], True
    for stages in (2, 3)[: context.size(2, 1)]:
        answers = run_ranks(
            stages, _tortured, context.size(24, 3), context.machine, context.approach, 45.0
        )
        for name, wrong in values_of(answers)[-1].items():
            told = f"micro-batches {wrong} differ" if wrong else "bits equal one process"
            lines.append(f"S = {stages}, {name}: {told}")
            held = held and not wrong
    return Found(held, lines)


def _tortured(machine: Machine, micro_batches: int) -> dict[str, list[int]]:
    """The micro-batches that differ, by variant, on the last stage."""
    found = {}
    for channels in ALL_CHANNELS:
        transport = TorchTransport(device=machine.device, channels=channels)
        plain = layers(transport.ranks + 1)
        pairs = data(micro_batches)
        variants = {"blocking": (False, False), "overlapped": (True, False)}
        if not machine.dry:
            variants["overlapped, CUDA graphs"] = (True, True)
        for variant, (overlap, cuda_graphs) in variants.items():
            with Evaluator(
                tortured(plain, machine),
                loss_fn=nn.functional.mse_loss,
                partition="uniform",
                overlap=overlap,
                cuda_graphs=cuda_graphs,
                transport=transport,
                timeout=TIMEOUT,
            ) as evaluator:
                result: Any = evaluator.eval_batch(
                    iter(pairs), return_logits=True, num_micro_batches=micro_batches
                )
                if evaluator.is_last:
                    expected = one_process(plain, pairs, machine.device)
                    found[f"{channels}, {variant}"] = differing(result, expected)
        transport.close()
    return found


class LeadOf:
    """Listens how many forwards the host is ahead of its device."""

    def __init__(self, device: torch.device) -> None:
        """Of `device`."""
        self._clock, self._marks = Clock(device), list[Mark]()
        self.most = 0

    def started(self, placed: Placed) -> None:
        """Count the forwards that the device has still before it."""
        if isinstance(placed.instruction, ForwardPass):
            self._marks = [mark for mark in self._marks if not self._clock.reached(mark)]
            self.most = max(self.most, len(self._marks))

    def finished(self, placed: Placed) -> None:
        """Note where the device will be."""
        if isinstance(placed.instruction, ForwardPass):
            self._marks.append(self._clock.mark())


def memory(context: Context) -> Found:
    """Neither reserved memory nor the host's lead grows with M."""
    sizes = (8, 64, 256) if not context.machine.dry else (2, 4)
    arguments = (sizes, *((4096, 2048) if not context.machine.dry else (4, 512)))
    by_rank = values_of(run_ranks(2, _measured, arguments, context.machine, context.approach, 30.0))
    lines, held = [], True
    for rank, found in enumerate(by_rank):
        told = (f"M = {m}: {b / 2**20:.0f} MiB, {lead} ahead" for m, (b, lead) in found.items())
        lines.append(f"rank {rank}: {'; '.join(told)}")
        reserved = [nbytes for nbytes, _ in found.values()]
        held = held and reserved[-1] <= 1.02 * reserved[-2]
        held = held and max(lead for _, lead in found.values()) <= LEAD
    return Found(held, lines, {"by_rank": by_rank})


def _measured(
    machine: Machine, argument: tuple[tuple[int, ...], int, int]
) -> dict[int, tuple[int, int]]:
    """Bytes reserved and the host's lead, by M: activations of `rows * width` floats."""
    sizes, rows, width = argument
    transport, lead = TorchTransport(device=machine.device), LeadOf(machine.device)
    found = {}
    pair = data(1, rows, width)[0]
    with Evaluator(
        tortured(layers(2, width), machine),
        loss_fn=nn.functional.mse_loss,
        partition="uniform",
        overlap=True,
        transport=transport,
        timeout=TIMEOUT,
        listeners=[lead],
    ) as evaluator:
        for micro_batches in sizes:
            machine.forget_reserved()
            lead.most = 0
            evaluator.eval_batch(iter([pair] * micro_batches), num_micro_batches=micro_batches)
            found[micro_batches] = machine.reserved(), lead.most
    transport.close()
    return found
