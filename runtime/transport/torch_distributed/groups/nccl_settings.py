"""Settings of NCCL and of torch's process groups over it: what is set, and by which source.

Read and not run. "Header": `ProcessGroupNCCL.hpp` as torch 2.13 installs it. "Source": a copy of
`ProcessGroupNCCL.cpp` later than torch 2.7.1 and earlier than 2.13. "Manual": the user guide of
NCCL (https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/).

**torch's watchdog.** A thread of each group looks at all operations; after an error or a timeout of
one of them it ends the process, and a monitor does so if the watchdog itself does not get on. A
process that has recovered from the death of a peer would be ended minutes later. So groups are
made without: in blocking-wait mode no watchdog is started, nor the monitor that it would start
(source, constructor). In that mode `Work.wait` blocks the host; `Work.block_current_stream` does
not (header: it is `synchronize`, which lets the current stream wait).
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

LAUNCH_ORDER = "NCCL_LAUNCH_ORDER_IMPLICIT"
"""Makes NCCL start the operations of several communicators in the order of the host program: with
several on one device, two processes could otherwise start theirs in different orders and wait for
each other (manual, environment variables; since NCCL 2.26)."""

BLOCKING_WAIT = "TORCH_NCCL_BLOCKING_WAIT"
"""Read when a group is made (source, constructor)."""

PROCESS_DEFAULTS = {
    LAUNCH_ORDER: "1",
    BLOCKING_WAIT: "1",
    # For groups that others make in the process, and for whoever sets blocking wait to 0 again. The
    # three go together: a dump needs the monitor (header, TORCH_NCCL_DUMP_ON_TIMEOUT).
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    "TORCH_NCCL_PROPAGATE_ERROR": "0",
    # Transfers of one group start one after the other, as plans are checked for.
    "TORCH_NCCL_SHOW_EAGER_INIT_P2P_SERIALIZATION_WARNING": "0",
}
"""The environment of processes that `pipeval` and the launchers start, unless it says otherwise."""


def set_process_defaults() -> None:
    """Set `PROCESS_DEFAULTS` where the environment does not; before the first process group."""
    for name, value in PROCESS_DEFAULTS.items():
        os.environ.setdefault(name, value)


_making = threading.Lock()


@contextmanager
def without_watchdog() -> Iterator[None]:
    """Inside, torch makes groups in blocking-wait mode; the environment is as it was afterwards."""
    with _making:
        before = os.environ.get(BLOCKING_WAIT)
        if before == "1":
            yield
            return
        os.environ[BLOCKING_WAIT] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[BLOCKING_WAIT]
            else:
                os.environ[BLOCKING_WAIT] = before


@dataclass(frozen=True)
class NcclSettings:
    """Settings of the communicators of a pipeline, the same on all ranks.

    Defaults are by reasoning, until they are measured (docs/explanation/gpu.md).
    """

    max_ctas: int | None = 4
    """Blocks of threads of one operation at most (`ncclConfig_t.maxCTAs`, manual). A receive that
    is posted ahead spins on that many multiprocessors while a forward runs: 4 of the 132 of an H100
    are 3 %. `None`: NCCL's own choice, up to 32 or more."""
    high_priority: bool = True
    """Whether transfers run on streams of high priority (header, `is_high_priority_stream`): blocks
    of a send that is ready go before those of a forward that wait for a place, so that the next
    rank is not kept waiting by this one's next forward."""
    nonblocking: bool = False
    """Whether communicators are non-blocking (`ncclConfig_t.blocking = 0`, manual), so that the
    host is never inside NCCL for long. Off: torch 2.7.1 stopped to choose it by itself, because it
    hung with NCCL 2.26 (https://github.com/pytorch/pytorch/issues/153960)."""

    def __post_init__(self) -> None:
        if self.max_ctas is not None and self.max_ctas < 1:
            raise ValueError(f"max_ctas is {self.max_ctas}, needed at least 1, or None")
