"""What the main job reports: where time went, whether one process agrees, and the result."""

import math
import time
from dataclasses import dataclass

import torch
from torch import nn

import schedcc
from runtime.evaluator import Evaluator
from runtime.execution.listeners import StageTimer
from runtime.language.models import ModelFiles, load_causal_lm
from runtime.language.perplexity.advice import bottleneck
from runtime.language.perplexity.job import Job
from runtime.language.perplexity.reference import LossInPieces, count_tokens, reference
from runtime.language.perplexity.scores import exact_loss, standard_error
from runtime.language.text import DEFAULT_TEXT, Documents, Windows, name_of
from runtime.modules.partition import parameters
from runtime.outputs.nonfinite import NonFiniteError
from runtime.outputs.results import EvalResult
from runtime.transport import Channels
from schedcc.io.plain_text import encodable
from schemas import LanguageModelEvaluation, PartitionAdvice, StageSummary, Verification


def require_finite_loss(result: EvalResult) -> None:
    """Refuse a loss that is none; on every rank alike.

    Raises:
        NonFiniteError: the loss is NaN or infinite; names the first micro-batch that makes it so.
    """
    if math.isfinite(result.loss):
        return
    losses = result.losses or ()
    bad = [number for number, loss in enumerate(losses) if not math.isfinite(loss)]
    where = f": that of micro-batch {bad[0]} is {losses[bad[0]]}" if bad else ""
    others = f", and {len(bad) - 1} others are not finite" if len(bad) > 1 else ""
    raise NonFiniteError(
        f"the loss is {result.loss}{where}{others}, of {result.micro_batches} micro-batches "
        "(--check-finite names the stage where it begins)"
    )


def stage_summary(
    evaluator: Evaluator, device: torch.device, timer: StageTimer, seconds: float
) -> StageSummary:
    """What this rank held and where its time went, of `seconds` in all."""
    by_op = timer.seconds()
    load, forward = by_op.pop("LoadMicroBatch", 0.0), by_op.pop("ForwardPass", 0.0)
    transfer = sum(s for op, s in by_op.items() if op.endswith("Activation"))
    receive, send = (
        sum(s for op, s in by_op.items() if op.endswith(f"{direction}Activation"))
        for direction in ("Recv", "Send")
    )
    epilogue = sum(by_op.values()) - transfer
    held = evaluator.stage_ids
    layers = sum(evaluator.boundaries[s + 1] - evaluator.boundaries[s] for s in held)
    return StageSummary(
        stage_id=evaluator.stage_id,
        rank=evaluator.rank,
        stages=held,
        device=str(device),
        first_layer=evaluator.boundaries[evaluator.stage_id],
        layers=layers,
        parameters=sum(map(parameters, evaluator.modules.values())),
        load_seconds=load,
        forward_seconds=forward,
        transfer_seconds=transfer,
        receive_seconds=receive,
        send_seconds=send,
        epilogue_seconds=epilogue,
        other_seconds=max(0.0, seconds - load - forward - transfer - epilogue),
    )


@dataclass(frozen=True)
class Finished:
    """What the stages hand to rank 0 at the end."""

    windows: Windows
    losses: torch.Tensor
    """Nats of every target, float32 `[tokens]`; NaN where a token is none."""
    stages: tuple[StageSummary, ...]
    digests: list[str] | None
    """Of the logits of each micro-batch, if they are to be compared."""
    backend: str
    channels: Channels
    seconds: float
    setup_seconds: float
    resumed: int = 0
    """Micro-batches that an earlier run had evaluated."""
    advice: PartitionAdvice | None = None

    @property
    def total(self) -> float:
        """The sum of all losses, in nats."""
        return exact_loss(self.losses)


def verification_of(
    files: ModelFiles, dtype: torch.dtype, finished: Finished, device: torch.device
) -> Verification:
    """Compare with the unsplit model in this process, on the device of its stage.

    Args:
        files: The model.
        dtype: Of its weights.
        finished: What the pipeline computed.
        device: Has to hold the whole model, beside the stage.

    Raises:
        NonFiniteError: the loss of one process is NaN or infinite.
    """
    model, windows = load_causal_lm(files, dtype), finished.windows
    loss, digests = finished.total / windows.tokens, finished.digests or []
    began = time.perf_counter()
    nn.Module.to(model, device)
    pieces = LossInPieces(model)
    found = reference(model, windows, pieces, count_tokens, device)
    expected = pieces.total / windows.tokens
    if not math.isfinite(expected):
        raise NonFiniteError(
            f"the loss of one process is {expected}, and that of the pipeline {loss}"
        )
    difference = abs(loss - expected)
    return Verification(
        reference_loss=expected,
        relative_difference=difference / abs(expected) if expected else difference,
        identical_logits=sum(a == b for a, b in zip(digests, found.digests, strict=True)),
        micro_batches=len(digests),
        reference_seconds=time.perf_counter() - began,
    )


def evaluation_of(
    job: Job, finished: Finished, verification: Verification | None
) -> LanguageModelEvaluation:
    """The result of `job`, whose loss is finite."""
    windows, losses, total = finished.windows, finished.losses, finished.total
    documents, seconds, resumed = windows.documents, finished.seconds, finished.resumed
    words, nbytes = _counted(documents, losses)
    earlier = sum(len(windows.targets(number)) for number in range(resumed))
    places = (~losses.isnan()).nonzero().flatten()
    owners = torch.searchsorted(documents.starts, places, right=True)
    return LanguageModelEvaluation(
        model=encodable(job.model),
        text=encodable(", ".join(map(name_of, job.texts)) or DEFAULT_TEXT),
        documents=job.documents,
        backend=finished.backend,
        channels=finished.channels,
        schedule=job.order.schedule,
        variant=job.order.variant(overlap=job.overlap),
        stages=job.order.stages,
        ranks=job.order.ranks,
        placement=job.order.placement,
        dtype=job.dtype,
        version=schedcc.__version__,
        threads=job.threads,
        sequence_length=job.sequence_length,
        micro_batch_size=job.micro_batch_size,
        micro_batches=len(windows),
        windows=windows.windows,
        resumed_micro_batches=resumed,
        stride=job.stride,
        bos=documents.bos is not None,
        document_count=int(owners.bincount().count_nonzero()),
        tokens=windows.tokens,
        targets=targets_of(documents, job.sequence_length, job.stride),
        words=words,
        bytes=nbytes,
        loss=total / windows.tokens,
        loss_standard_error=standard_error(*windows.sums(losses)),
        perplexity=_exp(total / windows.tokens),
        word_perplexity=_exp(total / words) if words else None,
        byte_perplexity=_exp(total / nbytes) if nbytes else None,
        bits_per_byte=total / nbytes / math.log(2) if nbytes else None,
        seconds=seconds,
        setup_seconds=finished.setup_seconds,
        tokens_per_second=(windows.tokens - earlier) / seconds if seconds else 0.0,
        stage_summaries=finished.stages,
        bottleneck_stage=bottleneck(finished.stages),
        advice=finished.advice,
        verification=verification,
    )


def targets_of(documents: Documents, sequence_length: int, stride: int | None) -> str:
    """What was counted as a target, in a sentence."""
    has_bos = documents.bos is not None
    apart = stride is not None and stride >= sequence_length  # no window has any of another
    if documents.is_each_alone:
        rest = " but the first of each window" if apart and not has_bos else ""
        return f"every token of every document{rest}, and no separator"
    but = []
    if not has_bos and (stride is None or apart):
        but = ["the first of each window"]
    elif not has_bos and documents.mode == "whole":
        but = ["the first of each text"]
    but += ["separators"] if documents.has_separators else []
    return "every token once" + (f", but {' and '.join(but)}" if but else "")


def _counted(documents: Documents, losses: torch.Tensor) -> tuple[int | None, int | None]:
    """Words and bytes of the targets, where they are known."""
    sizes = None if documents.origins is None else documents.origins.sizes
    if sizes is None:
        return None, None
    nbytes, words = sizes[~losses.isnan()].sum(0).tolist()
    return words, nbytes


def _exp(loss: float) -> float | None:
    try:
        return math.exp(loss)
    except OverflowError:
        return None
