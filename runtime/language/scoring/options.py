"""How a model is scored; the same on every stage."""

from dataclasses import dataclass
from typing import Literal

import torch

from runtime.failure.guard import TIMEOUT, require_timeout
from runtime.language.models import ModelFiles
from runtime.modules.partition import Partition
from schedcc.errors import require_count
from schedcc.io.plain_text import SentenceError

DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class ScorerOptions:
    """How a model is scored; the same on every stage."""

    dtype: str = "auto"
    """Of the weights: a name of torch's, or `"auto"`: as the model's files have them."""
    softmax_dtype: str | None = None
    """Of log-probabilities; default: that of the logits, as transformers computes them."""
    max_tokens: int | None = None
    """Of a micro-batch, padding included; a longer sequence has one to itself.

    Default: 2048, and in a short run one part in 32 of its tokens, or 512 if that is more. With
    `share_contexts`, rows that share the context of a longer sequence may add a quarter of its
    length."""
    max_rows: int | None = None
    """Sequences of a micro-batch; default: as many as fit."""
    share_contexts: bool = False
    """Whether what several sequences begin with is computed once: scores differ by rounding."""
    partition: Partition | Literal["balanced"] = "balanced"
    """How layers are divided: `"balanced"` by arithmetic, or as of `Evaluator`."""
    threads: int | None = None
    """Of each process; default: the cores divided by the stages on this machine."""
    timeout: float = TIMEOUT
    """Seconds without progress after which a run is ended."""

    def __post_init__(self) -> None:
        """Refuse what can be told to be wrong.

        Raises:
            ValueError: one sentence with the value and what was needed.
        """
        _require_dtype("dtype", self.dtype, (*DTYPES, "auto"))
        if self.softmax_dtype is not None:
            _require_dtype("softmax_dtype", self.softmax_dtype, DTYPES)
        for name in ("max_tokens", "max_rows", "threads"):
            if getattr(self, name) is not None:
                require_count(name, getattr(self, name))
        if not isinstance(self.share_contexts, bool):
            raise SentenceError(f"share_contexts is {self.share_contexts!r}, needed True or False")
        require_timeout(self.timeout)

    def torch_dtype(self, files: ModelFiles) -> torch.dtype:
        """The dtype of the weights."""
        if self.dtype != "auto":
            return _dtype(self.dtype)
        from transformers import AutoConfig

        from runtime.language.models.quiet import LOCAL, quiet_transformers

        with quiet_transformers():
            found = AutoConfig.from_pretrained(files.directory, **LOCAL).dtype
        return found if isinstance(found, torch.dtype) else torch.float32

    @property
    def torch_softmax_dtype(self) -> torch.dtype | None:
        """The dtype of log-probabilities."""
        return None if self.softmax_dtype is None else _dtype(self.softmax_dtype)


def _require_dtype(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}, needed one of {', '.join(known)}")


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found
