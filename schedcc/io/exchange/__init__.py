"""Exchange with other programs: the CSV files of `torch.distributed.pipelining`.

Nothing here imports torch. What the files mean, and what they cannot say, is in
`docs/explanation/checking.md`.
"""

from schedcc.io.exchange.reading import from_torch_csv, read_torch_csv
from schedcc.io.exchange.writing import to_torch_csv

__all__ = ["from_torch_csv", "read_torch_csv", "to_torch_csv"]
