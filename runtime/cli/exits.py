"""How a program that evaluates ends on an error: its exit status, and what it says."""

import os
import traceback
from typing import NamedTuple

from runtime.distributed.process_group import LaunchError, launched
from runtime.distributed.processes import Terminated, WorkerError
from runtime.failure.errors import AgreedError, RemoteError
from runtime.language.extras import not_installed
from schedcc.io.plain_text import sentence

INPUT_ERRORS = {
    "CheckpointError",
    "CudaGraphError",
    "DeviceError",
    "LaunchError",
    "ModelError",
    "OutputError",
    "PartitionError",
    "RecordingError",
    "ResumeError",
    "TextError",
}
"""Errors that a user's input can cause and that only a rank may notice."""

WRITING_ERRORS = {"ResultsEndError"}
"""Errors in the midst of a run, where something can no longer be written: a sentence says it."""

AGREED_ERRORS = {"AgreementError", "DifferentDataError", "NonFiniteError"}
"""Errors that every rank raises alike, and whose sentence says all there is to say."""


class Exit(NamedTuple):
    """The end of a program."""

    status: int
    """1 the run failed, 2 bad input, above 128 a signal."""
    message: str = ""
    """One sentence; empty: another rank says it."""
    trace: str = ""


def exit_for(error: BaseException, *, running: bool) -> Exit:
    """The end that `error` makes.

    Args:
        error: What was raised.
        running: Whether the evaluation had begun, so that an error is not the input's fault.
    """
    if isinstance(error, LaunchError):
        return Exit(2, str(error))  # the processes may not know of each other: each says it
    first_here = not launched() or os.environ.get("LOCAL_RANK", "0") == "0"
    if isinstance(error, KeyboardInterrupt):
        return Exit(130, "interrupted" if os.environ.get("RANK", "0") == "0" else "")
    if isinstance(error, Terminated):
        return Exit(143, "terminated")
    if isinstance(error, WorkerError):
        if error.kind in INPUT_ERRORS:
            return Exit(2, sentence(error.reason))
        if error.kind in AGREED_ERRORS | WRITING_ERRORS:
            return Exit(1, error.reason)
        return Exit(1, str(error), error.trace)
    if isinstance(error, ModuleNotFoundError):
        return Exit(2, not_installed(error) if first_here else "")
    if isinstance(error, RemoteError):
        failure = error.failure
        tells = failure.kind != "error" and os.environ.get("RANK") == str(failure.reporter)
        if len(failure.gone) + 1 == int(os.environ.get("WORLD_SIZE", "0")):
            tells = first_here  # every rank is cut off, and its own reporter: one of a host tells
        return Exit(1, failure.headline if tells else "")
    if type(error).__name__ in INPUT_ERRORS or (isinstance(error, ValueError) and not running):
        return Exit(2, sentence(str(error)) if running or first_here else "")
    if type(error).__name__ in WRITING_ERRORS:
        return Exit(1, str(error))
    if isinstance(error, AgreedError) and error.agreed:
        return Exit(1, str(error) if first_here else "")
    notes = ", ".join(getattr(error, "__notes__", ()))
    message = f"{type(error).__name__}: {error}" + (f" ({notes})" if notes else "")
    return Exit(1, message, "".join(traceback.format_exception(error)))
