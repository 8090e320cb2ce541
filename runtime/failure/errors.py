"""The errors that an evaluation over several processes can end with, beside the caller's own."""

from typing import Self

from runtime.failure.report import Failure


class AgreedError(Exception):
    """An error that every stage raises at the same point, because they compared notes.

    Nothing is under way then, so nobody has to be told and the next evaluation can begin.
    """

    agreed = True
    """Set to `False` on an error of such a class that one stage raises alone."""


class AgreementError(AgreedError, ValueError):
    """The stages were called with things that do not fit together."""


class RemoteError(RuntimeError):
    """The evaluation failed somewhere else; every rank but the guilty one raises the same."""

    def __init__(self, failure: Failure) -> None:
        """An error that tells of `failure`."""
        super().__init__(str(failure))
        self.failure = failure
        """What happened, where, and the traceback of the origin."""

    def __reduce__(self) -> tuple[type[Self], tuple[Failure]]:
        return type(self), (self.failure,)


class LostPeerError(RemoteError):
    """A process of the run is gone, or cannot be reached."""


class StalledError(RemoteError):
    """No stage got on for the whole timeout, or this rank is cut off from the others."""


def error_of(failure: Failure) -> RemoteError:
    """The error that a rank raises which is told of `failure`."""
    errors = {"lost": LostPeerError, "stalled": StalledError}
    return errors.get(failure.kind, RemoteError)(failure)
