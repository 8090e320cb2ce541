"""Exchange with other programs: the CSV files of `torch.distributed.pipelining`.

Nothing here imports torch. What the files mean, and what they cannot say, is in
`docs/explanation/checking.md`.
"""

from collections.abc import Callable
from pathlib import Path

from schedcc.io.exchange.reading import from_torch_csv, read_torch_csv
from schedcc.io.exchange.writing import to_torch_csv
from schemas import PipelinePlan

READERS: dict[str, Callable[[Path], PipelinePlan]] = {".csv": read_torch_csv}
"""By the suffix of a file: how commands read it, where it is no plan file of ours."""

__all__ = ["READERS", "from_torch_csv", "read_torch_csv", "to_torch_csv"]
