"""Logits: what becomes of the outputs of the last stage."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.utils import _pytree as pytree

from runtime.device import Clock
from runtime.outputs.options import EvalOptions
from runtime.tensors.activation import Signature, described
from runtime.transport.control_messages import receive_object, send_object
from runtime.transport.protocol import Transport


def label_log_probs(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """The log-probability of each label, in nats: a small thing to hand out in place of logits.

    Args:
        output: Logits `[..., classes]`.
        label: int64 `[...]`; where it is -100, the log-probability is 0, as if nothing was asked.

    Returns:
        float32 `[...]`.
    """
    classes = output.shape[-1]
    losses = functional.cross_entropy(
        output.float().reshape(-1, classes), label.reshape(-1), reduction="none", ignore_index=-100
    )
    return -losses.reshape(label.shape)


class Logits:
    """The logits of an evaluation, on one stage."""

    def __init__(
        self,
        options: EvalOptions,
        device: torch.device,
        synchronize: Callable[[], None] | None = None,
    ) -> None:
        """Begin without any.

        Args:
            options: What is wanted.
            device: Where logits come into being.
            synchronize: Waits until that has done what it was given; default: in the device.
        """
        self._options = options
        self._synchronize = synchronize or Clock(device).synchronize
        moved_to = options.logits_device
        self._device = None if moved_to is None else torch.device(moved_to)
        """Where logits are moved as they come; `None`: they stay where they are."""
        self._waiting: list[Any] = []
        self._numbers = 0
        self.handed_out: list[Any] | None = None
        """Those of every micro-batch so far, on the stages that get them."""

    @property
    def returned(self) -> bool:
        """Whether the caller wants them in the result, on any stage."""
        return self._options.return_logits

    def deliver(self, holder: list[Any], own: Callable[[list[Any]], Any]) -> None:
        """Take those of the next micro-batch, on the last stage.

        Args:
            holder: Holds nothing else; it is emptied, also where nobody wants them.
            own: Makes what is kept or handed out independent of the layers' memory.
        """
        if self._options.logits_in_epilogue:
            self._waiting.append(self._moved(own(holder)))
        elif self._options.on_logits is not None:
            self._hand_out(self._moved(own(holder)))
        holder.clear()

    def collect(self) -> None:
        """Hand out what has been delivered, on the last stage."""
        self._expect()
        for logits in self._taken():
            self._hand_out(logits)

    def move(self, transport: Transport, source: int, destination: int) -> None:
        """Hand what has been delivered on stage `source` to the caller on stage `destination`."""
        device = transport.device
        if transport.rank == source:
            waiting = self._taken()
            taken = [described(_to(device, logits)) for logits in waiting]
            send_object(transport, [signature for signature, _ in taken], destination)
            for signature, tensors in taken:
                memory = signature.memory_of(tensors)
                transport.wait(transport.post_send(memory, destination))
            return
        self._expect()
        for signature in receive_object(transport, source):
            memory = _memory(signature, device)
            transport.wait(transport.post_receive(memory, source))
            self._hand_out(self._moved(signature.activation(memory)))

    def broadcast(self, transport: Transport, source: int) -> None:
        """Hand what has been delivered on stage `source` to the callers on all stages."""
        self._expect()
        waiting = self._taken()
        taken = [described(_to(transport.device, logits)) for logits in waiting]
        own = [signature for signature, _ in taken]
        signatures: list[Signature] = transport.gather_objects(own)[source]
        for number, signature in enumerate(signatures):
            if transport.rank == source:
                memory = signature.memory_of(taken[number][1])
            else:
                memory = _memory(signature, transport.device)
            for tensor in memory:
                if tensor.numel():
                    transport.broadcast(tensor.view(torch.uint8), source)
            if transport.rank == source:
                self._hand_out(waiting[number])
            else:
                self._hand_out(self._moved(signature.activation(memory)))

    def finish(self) -> None:
        """Wait until what was moved has arrived."""
        if self._device is not None:
            self._synchronize()

    def _expect(self) -> None:
        if self._options.return_logits and self.handed_out is None:
            self.handed_out = []

    def _taken(self) -> list[Any]:
        waiting, self._waiting = self._waiting, []
        return waiting

    def _hand_out(self, logits: Any) -> None:
        if self._options.on_logits is not None:
            if self._device is not None:
                self._synchronize()
            self._options.on_logits(self._numbers, logits)
        if self.handed_out is not None:
            self.handed_out.append(logits)
        self._numbers += 1

    def _moved(self, logits: Any) -> Any:
        # To the CPU, torch moves into pinned memory and does not wait: see `finish`.
        return logits if self._device is None else _to(self._device, logits)


def _to(device: torch.device, logits: Any) -> Any:
    return pytree.tree_map_only(
        torch.Tensor, lambda tensor: tensor.to(device, non_blocking=True), logits
    )


def _memory(signature: Signature, device: torch.device) -> list[torch.Tensor]:
    return [
        torch.empty(block.nbytes, dtype=torch.uint8, device=device) for block in signature.blocks
    ]
