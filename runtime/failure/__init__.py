"""Failures: no run hangs, and what fails on one rank is the same error on all. See `guard`."""

from runtime.failure.errors import AgreedError, LostPeerError, RemoteError, StalledError
from runtime.failure.fingerprint import DifferentDataError
from runtime.failure.finite import NonFiniteError

__all__ = [
    "AgreedError",
    "DifferentDataError",
    "LostPeerError",
    "NonFiniteError",
    "RemoteError",
    "StalledError",
]
