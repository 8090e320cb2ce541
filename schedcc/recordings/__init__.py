"""Recordings of runs: read, put in order, and asked what happened and whether it was the plan."""

from schedcc.recordings.conform import conform
from schedcc.recordings.files import read_recording
from schedcc.recordings.postmortem import postmortem
from schedcc.recordings.recording import Recording

__all__ = ["Recording", "conform", "postmortem", "read_recording"]
