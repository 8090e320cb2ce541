"""Run the main job on one rank."""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch

from runtime.device import Clock
from runtime.distributed.process_group import process_group
from runtime.evaluator import Evaluator
from runtime.execution.listeners import Listener, StageTimer
from runtime.failure.guard import Guard
from runtime.language.models import (
    LazyModel,
    ModelFiles,
    PendingLogits,
    Targets,
    check_token_ids,
    layer_costs,
    lazy_causal_lm,
    load_tokenizer,
)
from runtime.language.perplexity.advice import advice
from runtime.language.perplexity.job import Job
from runtime.language.perplexity.measured import Measured
from runtime.language.perplexity.order import DEFAULT_SCHEDULE
from runtime.language.perplexity.outputs import (
    UnwrittenError,
    document_scores,
    token_scores,
    write_lines,
)
from runtime.language.perplexity.reference import LogitsDigests
from runtime.language.perplexity.resume import ResultLog, fingerprint
from runtime.language.perplexity.scores import mean_target_loss
from runtime.language.perplexity.summary import (
    Finished,
    evaluation_of,
    require_finite_loss,
    stage_summary,
    verification_of,
)
from runtime.language.progress import Display
from runtime.language.text import (
    Documents,
    Text,
    TextError,
    Windows,
    read_texts,
    tokenize_documents,
)
from runtime.language.text.sharing import share
from runtime.modules.division import Division
from runtime.modules.partition import balanced
from runtime.outputs.options import EvalKeywords
from runtime.outputs.results import EvalResult
from runtime.transport import TorchTransport
from schemas import LanguageModelEvaluation


class Outcome(NamedTuple):
    """What a run gives."""

    evaluation: LanguageModelEvaluation
    unwritten: str = ""
    """What kept the scores of documents or tokens from being written, in a sentence."""


def run_rank(job: Job) -> Outcome | None:
    """Do one rank's part of the job, in a process that a launcher has started.

    Returns:
        The outcome on rank 0, `None` on the others.
    """
    torch.set_num_threads(job.threads)
    files = job.check()
    connected = job.channels in ("shared", "per-edge")
    with process_group(connected=connected) as device:
        return _evaluate(job, files, device)


def _evaluate(job: Job, files: ModelFiles, device: torch.device) -> Outcome | None:
    transport = TorchTransport(device=device, channels=job.channels)
    order, here = job.order, transport.rank
    titles = Division.of(range(order.stages + 1), order.placement).titles
    guard = Guard(transport, timeout=job.timeout).named("", titles)
    is_first, is_last = here == 0, here == order.last_rank
    reads = here in (order.first_rank, order.last_rank)
    display = Display(job.progress if is_first or is_last else "none")
    with guard.run("pipeval") as run:
        run.phase("the reading of the text", waits_for="", patient=True)
        documents = tokenizer = None
        if is_first:
            display.phase("reading and tokenizing the text")
            documents, tokenizer = _documents(job, files)
        run.phase("the distribution of the text", waits_for=titles[0], patient=True)
        documents = share(documents, transport, wanted=reads)
        windows = None if documents is None else _windows(job, documents)

        run.phase("the loading of the model", waits_for="", patient=True)
        if is_first:
            display.phase("loading the model")
        timer, digests = StageTimer(Clock(device)), LogitsDigests() if job.verify else None
        measured = _measured(job, files, windows, display, device) if is_last else None
        model = lazy_causal_lm(files, getattr(torch, job.dtype))
        estimated = layer_costs(model.layers, job.sequence_length - 1)
        evaluator = _evaluator(job, model, estimated, transport, [timer], guard, measured)

        run.phase("the start of the evaluation")
        ready = transport.gather_objects(None if measured is None else measured.resumed)
        resumed: int = ready[order.last_rank]  # and nobody measures the others' loading
        began, setup = time.perf_counter(), time.time() - job.started
        data = windows if reads else None
        result = _run(evaluator, data, transport, resumed, measured, digests)
        seconds = time.perf_counter() - began

        run.phase("the reports")
        own = stage_summary(evaluator, device, timer, seconds)
        losses = measured and measured.scores.losses
        reports = transport.gather_objects((own, digests and digests.digests, losses))
    if result is not None:
        require_finite_loss(result)
    display.clear()
    if windows is None or not is_first:
        return None
    _, own_digests, losses = reports[order.last_rank]
    unwritten = _write_scores(job, windows.documents, losses, tokenizer)
    summaries = tuple(report[0] for report in reports)
    finished = Finished(
        windows=windows,
        losses=losses,
        stages=summaries,
        digests=own_digests,
        backend="nccl" if device.type == "cuda" else "gloo",
        channels=transport.channels,
        seconds=seconds,
        setup_seconds=setup,
        resumed=resumed,
        advice=advice(job, summaries, estimated, len(windows) - resumed),
    )
    return Outcome(_evaluation(job, files, finished, display, device), unwritten)


def _evaluation(
    job: Job, files: ModelFiles, finished: Finished, display: Display, device: torch.device
) -> LanguageModelEvaluation:
    """The result, with what comes of the comparison with one process if it is wanted."""
    verification = None
    if job.verify:
        display.phase("comparing with one process")
        verification = verification_of(files, getattr(torch, job.dtype), finished, device)
        display.clear()
    return evaluation_of(job, finished, verification)


def _windows(job: Job, documents: Documents) -> Windows:
    return Windows(
        documents, job.sequence_length, job.micro_batch_size, job.max_windows, job.stride
    )


def _measured(
    job: Job,
    files: ModelFiles,
    windows: Windows | None,
    display: Display,
    device: torch.device,
) -> Measured:
    """What takes the losses, on the last stage, with those of an earlier part of the run."""
    assert windows is not None
    log = None
    if job.resume is not None:
        targets = [len(windows.targets(number)) for number in range(len(windows))]
        log = ResultLog(job.resume, fingerprint(job, files, windows), targets)
    return Measured(windows, display, device, log)


def _run(
    evaluator: Evaluator,
    windows: Windows | None,
    transport: TorchTransport,
    resumed: int,
    measured: Measured | None,
    on_logits: LogitsDigests | None,
) -> EvalResult | None:
    """Evaluate what no earlier run has; `None` if that is nothing."""
    left = None if windows is None else len(windows) - resumed
    if 0 in transport.gather_objects(left):
        return None
    left_over = () if windows is None else windows.after(resumed)
    data = None if windows is None else ((ids, Targets.of(labels)) for ids, labels in left_over)
    # Moved by the evaluator, which waits for the device watchfully; a digest would block.
    options: EvalKeywords = {
        "on_logits": on_logits,
        "logits_fn": _all_logits,
        "logits_device": "cpu",
    }
    options = options if on_logits is not None else {}
    with measured or nullcontext():
        return evaluator.evaluate(data, **options)


def _all_logits(output: PendingLogits, _: Targets) -> torch.Tensor:
    return output.logits()


def _write_scores(job: Job, documents: Documents, losses: torch.Tensor, tokenizer: Any) -> str:
    """Write what is wanted; if it cannot be, say so, since the evaluation is not to be lost."""
    files = (
        (job.per_document, document_scores(documents, losses)),
        (job.per_token, token_scores(documents, losses, tokenizer)),
    )
    unwritten = []
    for path, scores in files:
        try:
            if path is not None:
                write_lines(path, scores)
        except UnwrittenError as error:
            unwritten.append(str(error))
    return "; ".join(unwritten)


def _evaluator(
    job: Job,
    model: LazyModel,
    costs: list[float],
    transport: TorchTransport,
    listeners: list[Listener],
    guard: Guard,
    measured: Measured | None,
) -> Evaluator:
    """Load this rank's layers, and nothing of the others."""
    order = job.order
    return Evaluator(
        model.specs(transport.device, scoring=True),
        loss_fn=mean_target_loss if measured is None else measured.loss_fn,
        stages=order.stages,
        schedule=order.schedule if order.plan is None else DEFAULT_SCHEDULE,
        plan=order.plan,
        partition=balanced(costs, order.placement) if job.partition is None else job.partition,
        overlap=job.overlap,
        weight_fn=len,
        transport=transport,
        guard=guard,
        cuda_graphs=job.cuda_graphs,
        check_finite=job.check_finite,
        listeners=listeners,
        record=job.record,
    )


def _documents(job: Job, files: ModelFiles) -> tuple[Documents, Any]:
    """The documents, and the tokenizer; on the rank that also writes their scores."""
    job.require_writable()
    texts = job.read
    if texts is None:
        texts = read_texts(job.texts, job.record_field, conversations=job.chat_template)
    enough = beginning = None
    if (some := job.max_windows) is not None:
        beginning = (some + 1) * job.sequence_length

        def enough(documents: Documents) -> bool:
            try:  # the last of them may be cut off
                return (
                    Windows(
                        documents, job.sequence_length, job.micro_batch_size, stride=job.stride
                    ).windows
                    > some
                )
            except TextError:
                return False

    tokenizer = load_tokenizer(files)
    documents = tokenize_documents(
        tokenizer,
        _taken(texts, as_user=job.chat_template),
        documents=job.documents,
        separator_id=job.separator_id,
        bos=job.bos,
        enough=enough,
        beginning=beginning,
    )
    check_token_ids(files, documents.tokens)
    return documents, tokenizer


def _taken(texts: list[Text], *, as_user: bool) -> Iterator[Text]:
    """The texts, which nobody keeps once they are tokens; as what a user says where asked."""
    while texts:
        text = texts.pop(0)
        if as_user and isinstance(text.content, str):
            text = text._replace(content=[{"role": "user", "content": text.content}])
        yield text
