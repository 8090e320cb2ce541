"""What an evaluation of a language model reports, as `pipeval --json` prints it."""

from typing import Literal

from pydantic import ConfigDict, Field

from schemas.base import Count, Frozen


class Measured(Frozen):
    """Numbers that were measured: none of them is NaN or infinite, which JSON cannot say."""

    model_config = ConfigDict(allow_inf_nan=False)


class StageSummary(Measured):
    """One rank: the stages that it held, mostly one, and where its time went."""

    stage_id: int = Field(ge=0)
    """The first stage of the rank."""
    rank: int = Field(default=0, ge=0)
    stages: tuple[int, ...] = ()
    """All stages of the rank."""
    device: str
    first_layer: int = Field(ge=0)
    """Global index of the first layer of the first stage."""
    layers: Count
    """Of all stages of the rank."""
    parameters: int = Field(ge=0)
    load_seconds: float
    """Time in `LoadMicroBatch`."""
    forward_seconds: float
    """Time in `ForwardPass`."""
    transfer_seconds: float
    """Time in sends and receives, waiting for the neighbour included."""
    epilogue_seconds: float
    """Time in the epilogue, waiting for the last stage included."""
    other_seconds: float
    """The rest of the evaluation: agreement on shapes, bookkeeping, logging."""


class Verification(Measured):
    """Comparison with one process that ran the unsplit model on the same micro-batches."""

    reference_loss: float
    relative_difference: float
    """`|loss - reference_loss| / |reference_loss|`; without the division if that is zero."""
    identical_logits: int
    """Micro-batches whose logits have the same bits in both runs."""
    micro_batches: Count
    reference_seconds: float

    @property
    def passed(self) -> bool:
        """Whether all logits are identical and the losses equal to 1e-12, relative."""
        return self.identical_logits == self.micro_batches and self.relative_difference <= 1e-12


class LanguageModelEvaluation(Measured):
    """Loss and perplexity of a causal language model on a text, and what they cost."""

    format: Literal["schedcc.evaluation/1"] = "schedcc.evaluation/1"
    model: str
    text: str
    """Names of the texts, with commas between them."""
    documents: Literal["whole", "lines", "packed"] = "whole"
    """What was a document, and what a target; `runtime.language.text.documents` has the table."""
    backend: str
    channels: Literal["memory", "shared", "per-edge"] | None = None
    """What activations travelled through."""
    schedule: str = "inference"
    variant: Literal["blocking", "overlapped"] | None = None
    stages: Count
    ranks: Count | None = None
    """Processes."""
    placement: tuple[int, ...] = ()
    """The rank of each stage."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the weights."""
    version: str | None = None
    """Of schedcc."""
    threads: Count
    """Threads of each process."""
    sequence_length: Count
    micro_batch_size: Count
    micro_batches: Count
    windows: Count
    tokens: Count
    """Tokens predicted."""
    loss: float
    """Mean negative log-likelihood of a token, in nats."""
    perplexity: float | None
    """`exp(loss)`; none where that is larger than any 64-bit number."""
    seconds: float
    """Wall-clock time of the evaluation, without loading the model."""
    setup_seconds: float
    """Time to start the processes and to load text and model."""
    tokens_per_second: float
    stage_summaries: tuple[StageSummary, ...]
    verification: Verification | None = None
