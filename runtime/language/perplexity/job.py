"""The job: which model to evaluate on which texts, and how."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from runtime.failure.guard import require_timeout
from runtime.language.models import (
    ModelFiles,
    check_sequence_length,
    check_tokenizer,
    locate_model,
)
from runtime.language.perplexity.order import Order
from runtime.language.perplexity.outputs import require_apart, require_writable
from runtime.language.progress import Style
from runtime.language.text import DocumentMode, Text, check_sizes, require_no_separator
from runtime.modules.partition import PartitionError, explicit
from runtime.transport import Channels
from schedcc.errors import require_count

MOST_THREADS = 1024
"""More than a machine has cores; far more, and the system has none left to give."""

RESULTS = "results.jsonl"
"""The file in the directory of `Job.resume`."""


@dataclass(frozen=True)
class Job:
    """What to evaluate, on what, and how."""

    model: str
    texts: tuple[Path, ...]
    """What to evaluate on; none: `default_text`."""
    order: Order
    """By which schedule or plan, over which stages and ranks."""
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
    cuda_graphs: bool
    check_finite: bool
    progress: Style
    record: Path | None
    """Directory of the recording to write."""
    started: float
    """When the run began, in seconds since the epoch."""
    chat_template: bool = False
    """Whether texts are conversations, or what a user says in one."""
    bos: bool | None = None
    """Whether windows begin with the token for the beginning of a text; none: see
    `tokenize_documents`."""
    stride: int | None = None
    """Tokens between the beginnings of windows."""
    record_field: str | None = None
    """What records call their text."""
    per_document: Path | None = None
    per_token: Path | None = None
    resume: Path | None = None
    """Directory of the results that this run adds to."""
    partition: tuple[int, ...] | None = None
    """Boundaries of the stages; none: balanced by arithmetic."""
    command: tuple[str, ...] = ()
    """The words of the command line."""
    read: list[Text] | None = field(default=None, repr=False)
    """The texts, on the first rank, if they were read before it was started; taken from here."""

    def check(self) -> ModelFiles:
        """Refuse what can be told to be wrong before the model and the text are loaded.

        Raises:
            ValueError: one sentence with the value and what was needed.
        """
        require_count("threads", self.threads)
        if self.threads > MOST_THREADS:
            raise ValueError(f"threads is {self.threads}, needed at most {MOST_THREADS}")
        require_timeout(self.timeout)
        if self.documents == "whole":
            require_no_separator(self.separator_id)
        check_sizes(self.sequence_length, self.micro_batch_size, self.max_windows, self.stride)
        if self.verify and self.resume is not None:
            raise ValueError("--verify compares all logits, and --resume keeps none: leave one out")
        self._require_apart()
        files = locate_model(self.model)
        check_tokenizer(files)
        check_sequence_length(files, self.sequence_length)
        layers = files.num_blocks + 2
        if self.order.stages > layers:
            raise PartitionError(
                f"{self.order.stages} stages for the {layers} layers of {self.model}, "
                "needed a layer for each stage"
            )
        if self.partition is not None:
            explicit(self.partition, layers, self.order.stages)
        return files

    def require_writable(self) -> None:
        """Refuse scores that cannot be written; on rank 0, which writes them.

        Raises:
            OutputError: one sentence.
        """
        for path in filter(None, (self.per_document, self.per_token)):
            require_writable(path)

    def _require_apart(self) -> None:
        outputs = {"--per-document": self.per_document, "--per-token": self.per_token}
        results = None if self.resume is None else self.resume / RESULTS
        require_apart({"--resume": results, **outputs})
        for text in self.texts:
            for option, path in outputs.items():
                require_apart({"--text": text, option: path})
