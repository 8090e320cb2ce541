"""One stage of a pipeline that scores: its layers, and runs of micro-batches through all stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from runtime.evaluator import Evaluator
from runtime.language.models import ModelFiles, layer_costs, lazy_causal_lm
from runtime.language.scoring.batching import MicroBatch
from runtime.language.scoring.head import answers, next_tokens
from runtime.language.scoring.options import ScorerOptions
from runtime.language.scoring.sharing import has_length_dependent_rope
from runtime.modules.partition import balanced
from runtime.outputs.options import LogitsFunction
from schemas import ForwardPass, Placed

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedConfig

Kind = Literal["score", "next_tokens"]
"""What the last stage makes of hidden states: `answers`, or `next_tokens`."""

TYPICAL_LENGTH = 512
"""Tokens of the sequences for which stages are balanced."""


@dataclass(frozen=True)
class StageData:
    """What one stage needs of a run: nothing but what it reads."""

    kind: Kind
    micro_batches: int
    inputs: Iterable[dict[str, torch.Tensor]] | None
    """What the model is given of each micro-batch, on the first stage; made when it is needed."""
    labels: tuple[Any, ...] | None
    """What is asked about each micro-batch, on the last stage."""


def stage_data(batches: Sequence[MicroBatch], kind: Kind, *, first: bool, last: bool) -> StageData:
    """What a stage needs of a run over `batches`."""
    ask = MicroBatch.label if kind == "score" else MicroBatch.last_positions
    return StageData(
        kind=kind,
        micro_batches=len(batches),
        inputs=map(MicroBatch.inputs, batches) if first else None,
        labels=tuple(ask(batch) for batch in batches) if last else None,
    )


class ScoringStage:
    """The layers of one stage."""

    def __init__(
        self,
        files: ModelFiles,
        options: ScorerOptions,
        *,
        stages: int,
        mesh: DeviceMesh | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Load this stage's layers, and nothing of the others. All stages have to call this.

        Args:
            files: The model.
            options: How it is scored.
            stages: S.
            mesh: With a dimension `"pp"`; default: all processes are the stages.
            device: Where the layers go.

        Raises:
            ModelError: the model cannot be loaded.
            PartitionError: it has fewer layers than stages.
            RemoteError: another stage could not load its layers.
        """
        model = lazy_causal_lm(files, options.torch_dtype(files))
        self.config: PreTrainedConfig = model.model.config
        partition = options.partition
        if partition == "balanced":
            partition = balanced(layer_costs(model.layers, TYPICAL_LENGTH), stages)
        score = partial(answers, softmax_dtype=options.torch_softmax_dtype)
        self._answer: dict[Kind, LogitsFunction] = {"score": score, "next_tokens": next_tokens}
        self._counter = _ForwardCounter()
        self.evaluator = Evaluator(
            model.specs(device, scoring=True),
            stages=stages,
            mesh=mesh,
            partition=partition,
            keyword_inputs=True,
            check_data=False,  # inputs and labels come from one source, each to its own stage
            timeout=options.timeout,
            listeners=(self._counter,),
        )
        if has_length_dependent_rope(self.config):
            for stage_module in self.evaluator.modules.values():
                forget_lengths(stage_module)

    def run(
        self,
        data: StageData,
        *,
        everywhere: bool,
        progress: Callable[[], None] | None = None,
    ) -> tuple[torch.Tensor, ...] | None:
        """Run micro-batches through the pipeline. All stages have to call this.

        Args:
            data: What this stage needs of them.
            everywhere: Whether all stages get the answers, or only the first.
            progress: Called after each forward of this stage.

        Returns:
            What the last stage made of each micro-batch, on the CPU, where this stage gets it.

        Raises:
            RemoteError: another stage failed, ended without a word, or did not get on in time.
        """
        evaluator = self.evaluator
        pairs = None
        if data.inputs is not None or data.labels is not None:
            inputs: Iterable[Any] = data.inputs or ({},) * data.micro_batches
            pairs = zip(inputs, data.labels or (None,) * data.micro_batches, strict=True)
        self._counter.progress = progress
        try:
            result = evaluator.evaluate(
                pairs,
                return_logits=True,
                compute_loss=False,
                reduce_output=None,
                logits_to="all" if everywhere else "first",
                logits_device="cpu",
                logits_fn=self._answer[data.kind],
            )
        finally:
            self._counter.progress = None
        return result.logits

    def close(self) -> None:
        """Give back connections, threads and shared memory."""
        self.evaluator.close()


def forget_lengths(model: nn.Module) -> None:
    """Make rotary embeddings of the type `dynamic` depend on no sequence that came before.

    `dynamic_rope_update` of transformers keeps the frequencies of the longest sequence so far until
    one comes that is shorter than what the model was trained on. Here they are put back before each
    forward, as they are there, so that each micro-batch gets those of its own length.

    Args:
        model: Its modules that are rotary embeddings of transformers stay so.
    """
    for module in model.modules():
        if hasattr(module, "max_seq_len_cached"):
            module.register_forward_pre_hook(_restore_frequencies)


def _restore_frequencies(rotary: nn.Module, _: Any) -> None:
    for name, buffer in list(rotary.named_buffers(recurse=False, remove_duplicate=False)):
        prefix, found, _end = name.rpartition("original_inv_freq")  # one for each type of layer
        if found:
            # A copy: transformers writes to the frequencies of the type `longrope` in place.
            rotary.register_buffer(f"{prefix}inv_freq", buffer.clone(), persistent=False)
            setattr(rotary, f"{prefix}max_seq_len_cached", rotary.original_max_seq_len)


class _ForwardCounter:
    """A listener that tells of each forward of this stage."""

    progress: Callable[[], None] | None = None

    def started(self, _: Placed) -> None:
        """Nothing to tell."""

    def finished(self, placed: Placed) -> None:
        """Tell of a forward."""
        if self.progress is not None and isinstance(placed.instruction, ForwardPass):
            self.progress()
