"""What the main job reports: where time went, whether one process agrees, and the result."""

import math
import time

import torch

from runtime.evaluator import Evaluator
from runtime.execution.listeners import StageTimer
from runtime.language.models import ModelFiles, load_causal_lm
from runtime.language.perplexity.job import Job, count_tokens, next_token_loss
from runtime.language.perplexity.reference import reference
from runtime.language.text import DEFAULT_TEXT, Windows, name_of
from runtime.modules.partition import parameters
from runtime.outputs.nonfinite import NonFiniteError
from runtime.outputs.results import EvalResult
from schedcc.io.plain_text import encodable
from schemas import LanguageModelEvaluation, StageSummary, Verification


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
    """Where the time of this stage went, of `seconds` in all."""
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


def verification_of(
    files: ModelFiles,
    dtype: torch.dtype,
    windows: Windows,
    device: torch.device,
    *,
    loss: float,
    digests: list[str],
) -> Verification:
    """Compare with the unsplit model in this process, on the device of its stage.

    Args:
        files: The model.
        dtype: Of its weights.
        windows: What was evaluated.
        device: Has to hold the whole model, beside the stage.
        loss: Of the pipeline.
        digests: Of the pipeline's logits, by micro-batch.

    Raises:
        NonFiniteError: the loss of one process is NaN or infinite.
    """
    model = load_causal_lm(files, dtype)
    began = time.perf_counter()
    expected = reference(model, windows, next_token_loss, count_tokens, device)
    if not math.isfinite(expected.loss):
        raise NonFiniteError(
            f"the loss of one process is {expected.loss}, and that of the pipeline {loss}"
        )
    difference = abs(loss - expected.loss)
    return Verification(
        reference_loss=expected.loss,
        relative_difference=difference / abs(expected.loss) if expected.loss else difference,
        identical_logits=sum(a == b for a, b in zip(digests, expected.digests, strict=True)),
        micro_batches=len(digests),
        reference_seconds=time.perf_counter() - began,
    )


def evaluation_of(
    job: Job,
    windows: Windows,
    result: EvalResult,
    stages: tuple[StageSummary, ...],
    verification: Verification | None,
    *,
    backend: str,
    seconds: float,
    setup_seconds: float,
) -> LanguageModelEvaluation:
    """The result of `job`, whose loss is finite."""
    return LanguageModelEvaluation(
        model=encodable(job.model),
        text=encodable(", ".join(map(name_of, job.texts)) or DEFAULT_TEXT),
        documents=job.documents,
        backend=backend,
        stages=job.stages,
        threads=job.threads,
        sequence_length=job.sequence_length,
        micro_batch_size=job.micro_batch_size,
        micro_batches=result.micro_batches,
        windows=windows.windows,
        tokens=windows.tokens,
        loss=result.loss,
        perplexity=_perplexity(result.loss),
        seconds=seconds,
        setup_seconds=setup_seconds,
        tokens_per_second=windows.tokens / seconds,
        stage_summaries=stages,
        verification=verification,
    )


def _perplexity(loss: float) -> float | None:
    try:
        return math.exp(loss)
    except OverflowError:
        return None
