"""Traces for a timeline viewer: recorded runs and simulated ones, in Chrome's Trace Event Format.

`chrome://tracing` and https://ui.perfetto.dev open the file. A pipeline is a process, a rank is a
thread, an instruction is a slice; a transfer that was posted is a bar of its own from its post to
its wait, so that what it crosses can be seen. An arrow leads from each send to its receive. The
format is described in "Trace Event Format" (Google, 2016); times are in microseconds.
"""

from schedcc.trace.recorded import recorded_trace
from schedcc.trace.simulated import simulated_trace

__all__ = ["recorded_trace", "simulated_trace"]
