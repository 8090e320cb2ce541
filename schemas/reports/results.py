"""What an evaluation of a language model reports, as `pipeval --json` prints it."""

from typing import Literal

from pydantic import ConfigDict, Field

from schemas.base import Count, Frozen, Size


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
    receive_seconds: float = 0.0
    """Of these, in receives."""
    send_seconds: float = 0.0
    """Of these, in sends."""
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
        """Whether all logits and the loss are identical."""
        identical = self.identical_logits == self.micro_batches
        return identical and self.relative_difference == 0


class PartitionAdvice(Measured):
    """A partition that would have been faster, as predicted from the measured times."""

    boundaries: tuple[int, ...]
    """Stage `s` would hold the layers from `boundaries[s]` up to `boundaries[s + 1]`."""
    predicted_seconds: float
    """Of the evaluation with it, without transfers."""
    predicted_now: float
    """The same of the partition that was run."""
    command: str
    """A command line that gets it."""


class LanguageModelEvaluation(Measured):
    """Loss and perplexity of a causal language model on a text, and what they cost."""

    format: Literal["schedcc.evaluation/1"] = "schedcc.evaluation/1"
    model: str
    text: str
    """Names of the texts, with commas between them."""
    documents: Literal["whole", "texts", "lines", "packed"] = "whole"
    """What was a document, and what a target; `runtime.language.text.documents` has the table."""
    backend: str
    """`nccl` between GPUs, `gloo` between CPUs, also where all of it went through shared memory."""
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
    resumed_micro_batches: Size = 0
    """Those of them whose results an earlier run had left."""
    stride: Count | None = None
    """Tokens between the beginnings of windows; none: they overlap only for single documents."""
    bos: bool = False
    """Whether windows begin with the token for the beginning of a text."""
    document_count: Count = 1
    """Documents that have a target."""
    tokens: Count
    """Tokens predicted."""
    targets: str = ""
    """What was counted as a target, in a sentence."""
    words: int | None = None
    """Of the targets: stretches without white space that begin in them; none: not known."""
    bytes: int | None = None
    """Of the targets, in UTF-8; none: the tokenizer does not tell."""
    loss: float
    """Mean negative log-likelihood of a token, in nats."""
    loss_standard_error: float | None = None
    """Of the loss, with windows as independent units; none of a single window."""
    perplexity: float | None
    """`exp(loss)`; none where that is larger than any 64-bit number."""
    word_perplexity: float | None = None
    """`exp(tokens x loss / words)`; none where words are not known, or none."""
    byte_perplexity: float | None = None
    """`exp(tokens x loss / bytes)`."""
    bits_per_byte: float | None = None
    """`tokens x loss / bytes / ln 2`."""
    seconds: float
    """Wall-clock time of the evaluation, without loading the model."""
    setup_seconds: float
    """Time to start the processes and to load text and model."""
    tokens_per_second: float
    """Of this run, without what an earlier one had done."""
    stage_summaries: tuple[StageSummary, ...]
    bottleneck_stage: Size = 0
    """The stage whose forwards took longest."""
    advice: PartitionAdvice | None = None
    """A faster partition; none: there is no better one for the measured times."""
    verification: Verification | None = None


class DocumentScore(Measured):
    """One document, as a line of `pipeval --per-document`."""

    document: Size
    name: str
    """Of the text; of a record with its number."""
    tokens: Count
    """Targets."""
    words: int | None
    bytes: int | None
    negative_log_likelihood: float
    """Sum over the targets, in nats."""
    loss: float
    """Mean over the targets, in nats."""


class TokenScore(Measured):
    """One target, as a line of `pipeval --per-token`."""

    document: Size
    position: Size
    """In its document, from 0 on."""
    token_id: Size
    token: str | None
    """As the vocabulary has it."""
    loss: float
    """Negative log-likelihood, in nats."""


class ResultsHeader(Frozen):
    """The first line of the results that `pipeval --resume` goes on from."""

    format: Literal["schedcc.results/1"] = "schedcc.results/1"
    job: dict[str, str]
    """What decides the losses, by name."""
    micro_batches: Count


class MicroBatchLosses(Frozen):
    """Another line of them: the losses of a micro-batch."""

    micro_batch: Size
    losses: str
    """Of its targets in nats: float32, little-endian, in base64."""
    crc32: int
    """Of `micro_batch` and `losses`, with a space between them."""
