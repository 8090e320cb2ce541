"""The main job: the loss of a causal language model on a text, over the stages of a pipeline."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.nn import functional

from runtime.device import Clock
from runtime.distributed.process_group import process_group
from runtime.evaluator import Evaluator
from runtime.execution.listeners import Listener, StageTimer
from runtime.failure.guard import Guard
from runtime.language.job_summary import (
    evaluation_of,
    require_finite_loss,
    stage_summary,
    verification_of,
)
from runtime.language.models import (
    ModelFiles,
    check_sequence_length,
    check_token_ids,
    check_tokenizer,
    layer_costs,
    lazy_causal_lm,
    load_tokenizer,
    locate_model,
)
from runtime.language.progress import MicroBatchProgress
from runtime.language.reference import LogitsDigests
from runtime.language.text import (
    IGNORED,
    DocumentMode,
    Documents,
    Text,
    Windows,
    check_sizes,
    read_texts,
    require_no_separator,
    tokenize_documents,
)
from runtime.language.text.sharing import share
from runtime.modules.partition import PartitionError, balanced
from runtime.transport import Channels, TorchTransport
from schedcc.errors import require_count
from schemas import LanguageModelEvaluation

MOST_THREADS = 1024
"""More than a machine has cores; far more, and the system has none left to give."""


@dataclass(frozen=True)
class Job:
    """What to evaluate, on what, and how."""

    model: str
    texts: tuple[Path, ...]
    """What to evaluate on; none: `default_text`."""
    stages: int
    micro_batch_size: int
    sequence_length: int
    max_windows: int | None
    documents: DocumentMode
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
    read: list[Text] | None = field(default=None, repr=False)
    """The texts, on the first rank, if they were read before it was started; taken from here."""

    def check(self) -> ModelFiles:
        """Refuse what can be told to be wrong before the model and the text are loaded.

        Raises:
            ValueError: one sentence with the value and what was needed.
        """
        for name in ("stages", "threads"):
            require_count(name, getattr(self, name))
        if self.threads > MOST_THREADS:
            raise ValueError(f"threads is {self.threads}, needed at most {MOST_THREADS}")
        if not self.timeout > 0:
            raise ValueError(f"timeout is {self.timeout:g} seconds, needed more than 0")
        if self.documents == "whole":
            require_no_separator(self.separator_id)
        check_sizes(self.sequence_length, self.micro_batch_size, self.max_windows)
        files = locate_model(self.model)
        check_tokenizer(files)
        check_sequence_length(files, self.sequence_length)
        layers = files.num_blocks + 2
        if self.stages > layers:
            raise PartitionError(
                f"{self.stages} stages for the {layers} layers of {self.model}, "
                "needed a layer for each stage"
            )
        return files


def next_token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of the targets, in nats.

    Args:
        logits: `[micro_batch_size, sequence, vocabulary]`.
        labels: int64 `[micro_batch_size, sequence]`; `IGNORED` where there is no target.
    """
    return functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED
    )


def count_tokens(labels: torch.Tensor) -> torch.Tensor:
    """The weight of a micro-batch in the loss: the tokens that it predicts."""
    return (labels != IGNORED).sum()


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
    with guard.run("pipeval") as run:
        run.phase("the reading of the text", waits_for="", patient=True)
        documents = _documents(job, files) if transport.stage_id == 0 else None
        is_last = transport.stage_id == transport.stages - 1
        run.phase("the distribution of the text", waits_for="stage 0", patient=True)
        documents = share(documents, transport, wanted=is_last)
        windows = None
        if documents is not None:
            windows = Windows(documents, job.sequence_length, job.micro_batch_size, job.max_windows)

        run.phase("the loading of the model", waits_for="", patient=True)
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
        summary = stage_summary(evaluator, device, timer, seconds)
        reports = transport.gather_objects((summary, digests))
    require_finite_loss(result)
    if not evaluator.is_first:
        return None
    assert windows is not None
    verification = None
    if job.verify:
        verification = verification_of(
            files,
            getattr(torch, job.dtype),
            windows,
            next_token_loss,
            count_tokens,
            loss=result.loss,
            digests=reports[-1][1].digests,
        )
    return evaluation_of(
        job,
        windows,
        result,
        tuple(summary for summary, _ in reports),
        verification,
        backend=dist.get_backend(),
        seconds=seconds,
        setup_seconds=setup,
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


def _documents(job: Job, files: ModelFiles) -> Documents:
    texts = read_texts(job.texts) if job.read is None else job.read
    documents = tokenize_documents(
        load_tokenizer(files),
        _taken(texts),
        documents=job.documents,
        separator_id=job.separator_id,
    )
    check_token_ids(files, documents.tokens)
    return documents


def _taken(texts: list[Text]) -> Iterator[Text]:
    """The texts, which nobody keeps once they are tokens."""
    while texts:
        yield texts.pop(0)
