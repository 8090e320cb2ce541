"""The oldest torch that the transports can do with.

- `Store.clone()`, a connection to the store for each thread, came with torch 2.8
  (https://github.com/pytorch/pytorch/pull/150966).
- On NCCL, groups that are connected eagerly use one communicator for single and for grouped
  transfers since torch 2.9 (https://github.com/pytorch/pytorch/pull/154132); before, the two would
  never match. `TORCH_NCCL_SHOW_EAGER_INIT_P2P_SERIALIZATION_WARNING` came with it.
"""

import re

import torch

OLDEST = (2, 9)


def require_torch(version: str = torch.__version__) -> None:
    """Refuse a torch that is too old.

    Raises:
        ImportError: it is.

    >>> require_torch("2.13.0+cpu")
    >>> require_torch("2.6.0")
    Traceback (most recent call last):
    ImportError: torch 2.6.0 is installed, needed 2.9 or newer: pip install -U 'torch>=2.9'
    """
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if numbers and numbers < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ImportError(
            f"torch {version} is installed, needed {oldest} or newer: pip install -U "
            f"'torch>={oldest}'"
        )
