"""What the last stage does with the losses as they come: keep, write, and show them."""

import torch

from runtime.language.perplexity.resume import ResultLog
from runtime.language.perplexity.scores import LossCollector, TokenScores
from runtime.language.progress import Display
from runtime.language.text import Windows


class Measured:
    """The losses of a run, with those of an earlier part of it."""

    def __init__(
        self, windows: Windows, display: Display, device: torch.device, log: ResultLog | None
    ) -> None:
        """Begin with what the log holds.

        Args:
            windows: What is evaluated.
            display: Shows how far it is.
            device: Where losses are computed.
            log: The results of this run, if it can be gone on with.
        """
        self._windows, self._display, self._log = windows, display, log
        self.scores = TokenScores(windows)
        for losses in log.finished if log is not None else ():
            self.scores.add(losses)
        self.resumed = self.scores.micro_batches
        """Micro-batches that need not be evaluated."""
        self.loss_fn = LossCollector(device, self._take)

    def __enter__(self) -> None:
        """The evaluation begins."""
        done, windows = self.scores.micro_batches, self._windows
        before = f", {done} of them in an earlier run" if done else ""
        self._display.phase(
            f"evaluating {windows.windows} windows in {len(windows)} micro-batches{before}"
        )
        self._display.begin(done, self.scores.tokens)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """All micro-batches have been evaluated, or the run has failed."""
        if kind is None:
            self.loss_fn.finish()
        if self._log is not None:
            self._log.close()

    def _take(self, losses: torch.Tensor) -> None:
        scores, total = self.scores, len(self._windows)
        scores.add(losses)
        if self._log is not None:
            self._log.append(losses)
        if self._display.is_due(last=scores.micro_batches == total):
            loss, error = scores.running()
            self._display.progress(scores.micro_batches, total, scores.tokens, loss, error)
