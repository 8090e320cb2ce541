"""The C allocator, told to keep what it will be asked for again.

A stage on a CPU makes an output for every micro-batch and lets go of it two micro-batches later. By
default glibc hands freed memory at the end of its heap back to the system, which then has to clear
every page of the next output anew: with activations of 8 MiB that was more than half of a stage's
time in the kernel. On a GPU the allocator of torch keeps memory by itself.
"""

import ctypes
import os

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt` (https://man7.org/linux/man-pages/man3/mallopt.3.html)."""

LARGEST_ON_HEAP = 32 * 2**20
"""Bytes above which glibc maps memory for each request and unmaps it afterwards, whatever it is
told."""

ACTIVATIONS = 4
"""Freed activations to keep: the outputs of two buffers, and what the layers need in between."""


def keep_freed_activations(nbytes: int, device: torch.device) -> None:
    """Let freed memory of a few activations of `nbytes` stay with this process.

    Does nothing for a GPU, for activations that the allocator would map one by one anyway, where
    the environment says what the allocator is to do (`MALLOC_TRIM_THRESHOLD_`), and where it is
    not that of glibc.
    """
    if device.type == "cpu" and nbytes <= LARGEST_ON_HEAP:
        _GLIBC.keep(ACTIVATIONS * nbytes)


class _Glibc:
    """The allocator of this process."""

    def __init__(self) -> None:
        self._kept = 2**17  # its default

    def keep(self, nbytes: int) -> None:
        """Hand freed memory back only beyond `nbytes`; never less than it was told before."""
        if nbytes <= self._kept or "MALLOC_TRIM_THRESHOLD_" in os.environ:
            return
        self._kept = nbytes
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            # The first alone would switch off that the second adapts itself.
            mallopt(M_TRIM_THRESHOLD, min(nbytes, 2**31 - 1))
            mallopt(M_MMAP_THRESHOLD, LARGEST_ON_HEAP)


_GLIBC = _Glibc()
