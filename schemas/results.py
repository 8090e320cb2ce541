"""What an evaluation of a language model reports, as `pipeval --json` prints it."""

from typing import Literal

from pydantic import Field

from schemas.base import Count, Frozen


class StageSummary(Frozen):
    """One stage: what it held and where its time went."""

    stage_id: int = Field(ge=0)
    device: str
    first_layer: int = Field(ge=0)
    """Global index of the stage's first layer."""
    layers: Count
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


class Verification(Frozen):
    """Comparison with one process that ran the unsplit model on the same micro-batches."""

    reference_loss: float
    relative_difference: float
    """`|loss - reference_loss| / |reference_loss|`"""
    identical_logits: int
    """Micro-batches whose logits have the same bits in both runs."""
    micro_batches: Count
    reference_seconds: float

    @property
    def passed(self) -> bool:
        """Whether all logits are identical and the losses equal to 1e-12, relative."""
        return self.identical_logits == self.micro_batches and self.relative_difference <= 1e-12


class LanguageModelEvaluation(Frozen):
    """Loss and perplexity of a causal language model on a text, and what they cost."""

    format: Literal["schedcc.evaluation/1"] = "schedcc.evaluation/1"
    model: str
    text: str
    backend: str
    stages: Count
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
    perplexity: float
    seconds: float
    """Wall-clock time of the evaluation, without loading the model."""
    setup_seconds: float
    """Time to start the processes and to load text and model."""
    tokens_per_second: float
    stage_summaries: tuple[StageSummary, ...]
    verification: Verification | None = None
