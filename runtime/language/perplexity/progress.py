"""A progress bar for long runs, on standard error."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from schemas import ForwardPass, Placed


class MicroBatchProgress:
    """A listener that counts the micro-batches which the last stage has forwarded."""

    def __init__(self, micro_batches: int) -> None:
        """Expect `micro_batches`; nothing is drawn where standard error is no terminal."""
        self._progress = Progress(
            TextColumn("evaluating"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("micro-batches"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("evaluating", total=micro_batches)

    def __enter__(self) -> "MicroBatchProgress":
        if self._progress.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def started(self, _: Placed) -> None:
        """Nothing to draw yet."""

    def finished(self, placed: Placed) -> None:
        """Count a forward."""
        if isinstance(placed.instruction, ForwardPass):
            self._progress.advance(self._task)
