"""The reference: the unsplit model in one process, and how to tell that logits are the same."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from runtime.data.samples import WeightFunction
from runtime.language.models import (
    HeadLayer,
    PendingLogits,
    Targets,
    split_causal_lm,
    target_losses,
)
from runtime.language.models.split.causal import decoder_layers
from runtime.language.perplexity.scores import exact_loss
from runtime.language.text import IGNORED
from runtime.modules.modes import evaluating
from runtime.outputs.exact_sums import weighted_average
from runtime.outputs.values import LossFunction
from runtime.tensors.activation import ALIGNMENT

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of every label in nats, float32 `[labels]`; 0 where it is `IGNORED`.

    Args:
        logits: `[micro_batch_size, sequence, vocabulary]`.
        labels: int64 `[micro_batch_size, sequence]`.
    """
    return functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )


def next_token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean of `token_losses` over the labels that are not `IGNORED`, float64."""
    return token_losses(logits, labels).sum(dtype=torch.float64) / count_tokens(labels)


def count_tokens(labels: torch.Tensor) -> torch.Tensor:
    """The weight of a micro-batch in the loss: the tokens that it predicts."""
    return (labels != IGNORED).sum()


class LossInPieces:
    """The loss of an unsplit model as the last stage computes it: the head in the same pieces.

    A head that is applied to other rows at once rounds its logits otherwise. That all logits are
    the model's own is told by their digests.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        """Watch a model, on the device where it stays, from now on."""
        head = split_causal_lm(model)[-1]
        assert isinstance(head, HeadLayer)
        self._head, self._losses = head, list[torch.Tensor]()
        self._hidden: torch.Tensor | None = None
        name = model.config.name_or_path or type(model).__name__
        decoder_layers(name, model).modules[-1].register_forward_hook(self._keep)

    def __call__(self, _: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean loss of the micro-batch that the model has just seen, in nats, float64."""
        assert self._hidden is not None
        losses = target_losses(PendingLogits(self._hidden, self._head), Targets.of(labels))
        self._losses.append(losses.cpu())
        return losses.mean(dtype=torch.float64)

    @property
    def total(self) -> float:
        """The sum of the losses of all targets so far, in nats, rounded once."""
        return exact_loss(torch.cat(self._losses))

    def _keep(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self._hidden = output[0] if isinstance(output, tuple) else output


def digest(logits: torch.Tensor) -> str:
    """SHA-256 of a tensor's shape and bits: equal exactly for bit-identical tensors."""
    content = logits.detach().cpu().contiguous()
    header = f"{content.dtype} {list(content.shape)}".encode()
    return sha256(header + content.view(torch.uint8).numpy().tobytes()).hexdigest()


@dataclass
class LogitsDigests:
    """A callback that notes the digest of every micro-batch's logits."""

    digests: list[str] = field(default_factory=list)

    def __call__(self, micro_batch: int, logits: Any) -> None:
        """Note the digest of the next micro-batch."""
        assert micro_batch == len(self.digests)
        self.digests.append(digest(logits))


@dataclass(frozen=True)
class Reference:
    """What one process computes."""

    loss: float
    digests: list[str]


def reference(
    model: nn.Module,
    micro_batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    loss_fn: LossFunction,
    weight_fn: WeightFunction,
    device: torch.device | None = None,
) -> Reference:
    """Evaluate an unsplit causal language model, one micro-batch after the other.

    Args:
        model: A causal language model of transformers.
        micro_batches: Inputs and labels, int64 `[micro_batch_size, sequence]`.
        loss_fn: As of the evaluator.
        weight_fn: As of the evaluator.
        device: Where to: that of the stages, since kernels of another one round otherwise; default:
            the CPU.
    """
    device = device or torch.device("cpu")
    model.to(device)
    _align(model)
    digests = LogitsDigests()
    losses, weights = [], []
    with evaluating(model):
        for number, pair in enumerate(micro_batches):
            inputs, labels = (tensor.to(device) for tensor in pair)
            logits = model(input_ids=inputs, use_cache=False).logits
            losses.append(float(loss_fn(logits, labels)))
            weights.append(float(weight_fn(labels)))
            digests(number, logits)
    return Reference(weighted_average(losses, weights), digests.digests)


def _align(model: nn.Module) -> None:
    """Move weights that lie in a mapped file, at any offset, to where a stage's own would be.

    Where a matrix begins decides how kernels divide its rows into vectors, and so the last bits of
    products with a single row.
    """
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
