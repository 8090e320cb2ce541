"""The rows of the table: a question to a GPU each, and how long its answer may take."""

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.gpu.context import Context
from benchmarks.gpu.report import Found
from benchmarks.gpu.rows.failures import connecting, failures
from benchmarks.gpu.rows.graphs import graphs
from benchmarks.gpu.rows.language import language
from benchmarks.gpu.rows.overhead import overhead
from benchmarks.gpu.rows.several_ranks import several_ranks
from benchmarks.gpu.rows.single import single
from benchmarks.gpu.rows.spinning import spinning
from benchmarks.gpu.rows.threads import threads
from benchmarks.gpu.rows.torture import memory, over_nccl


class Row(NamedTuple):
    """A question."""

    number: int
    title: str
    ask: Callable[[Context], Found]
    limit: float
    """Seconds after which it is ended."""


ROWS = (
    Row(0, "several NCCL ranks on one GPU", several_ranks, 45),
    Row(1, "torture, ranks as threads with a stream each", threads, 30),
    Row(2, "torture over NCCL, S = 2 and 3", over_nccl, 80),
    Row(3, "memory and the host's lead, M = 8 to 256", memory, 40),
    Row(4, "faults: raise, SIGKILL, SIGSTOP, endless kernel", failures, 125),
    Row(5, "a rank killed while connecting", connecting, 40),
    Row(6, "matrix products beside a spinning receive", spinning, 50),
    Row(7, "layers captured into CUDA graphs", graphs, 25),
    Row(8, "one stage: loads, logits, the reference", single, 30),
    Row(9, "layers that do nothing", overhead, 45),
    Row(10, "SmolLM2 in bfloat16 beside transformers", language, 80),
)
