"""The main job: the loss of a causal language model on a text, over the stages of a pipeline."""

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.nn import functional

from runtime.device import Clock
from runtime.evaluator import Evaluator
from runtime.failure.guard import Guard
from runtime.listeners import Listener, StageTimer
from runtime.models import (
    ModelFiles,
    check_sequence_length,
    check_token_ids,
    layer_costs,
    lazy_causal_lm,
    load_causal_lm,
    load_tokenizer,
    locate_model,
)
from runtime.partition import PartitionError, balanced, parameters
from runtime.process_group import process_group
from runtime.progress import MicroBatchProgress
from runtime.reference import LogitsDigests, reference
from runtime.text import Windows, check_sizes, default_text, read_text, tokenize
from runtime.transport import Channels, TorchTransport
from schedcc.errors import require_count
from schemas import LanguageModelEvaluation, StageSummary, Verification

DEFAULT_TEXT = "pydoc_data.topics"


@dataclass(frozen=True)
class Job:
    """What to evaluate, on what, and how."""

    model: str
    text: Path | None
    stages: int
    micro_batch_size: int
    sequence_length: int
    max_windows: int | None
    documents: Literal["whole", "lines"]
    separator_id: int | None
    dtype: Literal["float32", "bfloat16", "float16"]
    overlap: bool
    channels: Channels | None
    threads: int
    verify: bool
    timeout: float
    """Seconds without progress after which the run is ended."""
    check_finite: bool
    progress: bool
    record: Path | None
    """Directory of the recording to write."""
    started: float
    """When the run began, in seconds since the epoch."""

    def check(self) -> ModelFiles:
        """Refuse what can be told to be wrong before the model and the text are loaded.

        Raises:
            ValueError: one sentence with the value and what was needed.
        """
        for name in ("stages", "threads"):
            require_count(name, getattr(self, name))
        if not self.timeout > 0:
            raise ValueError(f"timeout is {self.timeout:g} seconds, needed more than 0")
        check_sizes(self.sequence_length, self.micro_batch_size, self.max_windows)
        files = locate_model(self.model)
        check_sequence_length(files, self.sequence_length)
        layers = files.num_blocks + 2
        if self.stages > layers:
            raise PartitionError(
                f"{self.stages} stages for the {layers} layers of {self.model}, "
                "needed a layer for each stage"
            )
        return files

    def read_text(self) -> str:
        """The text to evaluate on."""
        return default_text() if self.text is None else read_text(self.text)


def next_token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of the labels, in nats.

    Args:
        logits: `[micro_batch_size, sequence, vocabulary]`.
        labels: int64 `[micro_batch_size, sequence]`.
    """
    return functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())


def count_tokens(labels: torch.Tensor) -> float:
    """The weight of a micro-batch in the loss: the tokens that it predicts."""
    return float(labels.numel())


def run_rank(job: Job) -> LanguageModelEvaluation | None:
    """Do one rank's part of the job, in a process that a launcher has started.

    Returns:
        The evaluation on rank 0, `None` on the others.
    """
    torch.set_num_threads(job.threads)
    files = job.check()
    with process_group() as device:
        return _evaluate(job, files, device)


def _evaluate(job: Job, files: ModelFiles, device: torch.device) -> LanguageModelEvaluation | None:
    transport = TorchTransport(device=device, channels=job.channels)
    guard = Guard(transport, timeout=job.timeout)
    with guard.run() as run:
        run.phase("the loading of the model", waits_for="", patient=True)
        is_last = transport.stage_id == transport.stages - 1
        windows = _windows(job, files) if transport.stage_id == 0 or is_last else None
        timer, digests = StageTimer(Clock(device)), LogitsDigests()
        listeners: list[Listener] = [timer]
        bar: AbstractContextManager[Any] = nullcontext()
        if job.progress and is_last and windows is not None:
            bar = progress = MicroBatchProgress(len(windows))
            listeners.append(progress)
        evaluator = _evaluator(job, files, transport, listeners, guard)

        run.phase("the start of the evaluation")
        transport.gather_objects(None)  # nobody measures the others' loading
        began, setup = time.perf_counter(), time.time() - job.started
        with bar:
            result = evaluator.evaluate(windows, on_logits=digests if job.verify else None)
        seconds = time.perf_counter() - began

        run.phase("the reports")
        reports = transport.gather_objects((_summary(evaluator, device, timer, seconds), digests))
    if not evaluator.is_first:
        return None
    assert windows is not None
    assert result.loss is not None
    verification = None
    if job.verify:
        verification = _verify(job, files, windows, result.loss, reports[-1][1].digests)
    return LanguageModelEvaluation(
        model=job.model,
        text=DEFAULT_TEXT if job.text is None else str(job.text),
        backend=dist.get_backend(),
        stages=job.stages,
        threads=job.threads,
        sequence_length=job.sequence_length,
        micro_batch_size=job.micro_batch_size,
        micro_batches=result.micro_batches,
        windows=windows.windows,
        tokens=windows.tokens,
        loss=result.loss,
        perplexity=float(torch.tensor(result.loss, dtype=torch.float64).exp()),
        seconds=seconds,
        setup_seconds=setup,
        tokens_per_second=windows.tokens / seconds,
        stage_summaries=tuple(summary for summary, _ in reports),
        verification=verification,
    )


def _evaluator(
    job: Job,
    files: ModelFiles,
    transport: TorchTransport,
    listeners: list[Listener],
    guard: Guard,
) -> Evaluator:
    """Load this stage's layers, and nothing of the others."""
    model = lazy_causal_lm(files, getattr(torch, job.dtype))
    return Evaluator(
        model.specs(transport.device),
        loss_fn=next_token_loss,
        stages=job.stages,
        partition=balanced(layer_costs(model.layers, job.sequence_length - 1), job.stages),
        overlap=job.overlap,
        weight_fn=count_tokens,
        transport=transport,
        guard=guard,
        check_finite=job.check_finite,
        listeners=listeners,
        record=job.record,
    )


def _windows(job: Job, files: ModelFiles) -> Windows:
    tokens = tokenize(
        load_tokenizer(files),
        job.read_text(),
        documents=job.documents,
        separator_id=job.separator_id,
    )
    check_token_ids(files, tokens)
    return Windows(tokens, job.sequence_length, job.micro_batch_size, job.max_windows)


def _summary(
    evaluator: Evaluator, device: torch.device, timer: StageTimer, seconds: float
) -> StageSummary:
    by_op = timer.seconds()
    load, forward = by_op.pop("LoadMicroBatch", 0.0), by_op.pop("ForwardPass", 0.0)
    transfer = sum(s for op, s in by_op.items() if op.endswith("Activation"))
    epilogue = sum(by_op.values()) - transfer
    first, stop = evaluator.boundaries[evaluator.stage_id : evaluator.stage_id + 2]
    return StageSummary(
        stage_id=evaluator.stage_id,
        device=str(device),
        first_layer=first,
        layers=stop - first,
        parameters=parameters(evaluator.module),
        load_seconds=load,
        forward_seconds=forward,
        transfer_seconds=transfer,
        epilogue_seconds=epilogue,
        other_seconds=max(0.0, seconds - load - forward - transfer - epilogue),
    )


def _verify(
    job: Job,
    files: ModelFiles,
    micro_batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    loss: float,
    digests: list[str],
) -> Verification:
    """Compare with the unsplit model in this process, on the CPU or GPU of its stage."""
    model = load_causal_lm(files, getattr(torch, job.dtype))
    began = time.perf_counter()
    expected = reference(model, micro_batches, next_token_loss, count_tokens)
    identical = sum(a == b for a, b in zip(digests, expected.digests, strict=True))
    return Verification(
        reference_loss=expected.loss,
        relative_difference=abs(loss - expected.loss) / abs(expected.loss),
        identical_logits=identical,
        micro_batches=len(digests),
        reference_seconds=time.perf_counter() - began,
    )
