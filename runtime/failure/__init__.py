"""Failures: no run hangs, and what fails on one rank is the same error on all. See `guard`."""

from runtime.data.fingerprint import DifferentDataError
from runtime.failure.errors import AgreedError, LostPeerError, RemoteError, StalledError
from runtime.outputs.nonfinite import NonFiniteError

__all__ = [
    "AgreedError",
    "DifferentDataError",
    "LostPeerError",
    "NonFiniteError",
    "RemoteError",
    "StalledError",
]
