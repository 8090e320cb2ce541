"""Failures: no run hangs, and what fails on one rank is the same error on all. See `guard`."""

from runtime.failure.errors import (
    AgreedError,
    AgreementError,
    LostPeerError,
    RemoteError,
    StalledError,
)

__all__ = [
    "AgreedError",
    "AgreementError",
    "LostPeerError",
    "RemoteError",
    "StalledError",
]
