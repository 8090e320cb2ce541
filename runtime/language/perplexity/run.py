"""Run the main job on one rank."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist

from runtime.device import Clock
from runtime.distributed.process_group import process_group
from runtime.evaluator import Evaluator
from runtime.execution.listeners import Listener, StageTimer
from runtime.failure.guard import Guard
from runtime.language.models import (
    ModelFiles,
    check_token_ids,
    layer_costs,
    lazy_causal_lm,
    load_tokenizer,
)
from runtime.language.perplexity.job import Job, count_tokens, next_token_loss
from runtime.language.perplexity.progress import MicroBatchProgress
from runtime.language.perplexity.reference import LogitsDigests
from runtime.language.perplexity.summary import (
    evaluation_of,
    require_finite_loss,
    stage_summary,
    verification_of,
)
from runtime.language.text import Documents, Text, Windows, read_texts, tokenize_documents
from runtime.language.text.sharing import share
from runtime.modules.partition import balanced
from runtime.outputs.options import EvalKeywords
from runtime.transport import TorchTransport
from schemas import LanguageModelEvaluation


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
            # Moved by the evaluator, which waits for the device watchfully; a digest would block.
            looked_at: EvalKeywords = {"on_logits": digests, "logits_device": "cpu"}
            result = evaluator.evaluate(windows, **(looked_at if job.verify else {}))
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
            device,
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
