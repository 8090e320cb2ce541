"""The memory that the loss of a language model takes where its vocabulary is large.

`python -m benchmarks.logits_memory` evaluates one micro-batch of a Llama with random weights, on a
CPU: once with the head applied to some targets at a time, as `pipeval` does, and with `--full` also
with the logits of the whole micro-batch. It prints the peak of the resident memory above what the
process held when the model was loaded (`VmHWM` of Linux), beside what the logits take in float32.
"""

import argparse
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.model_memory import MIB, peak_bytes, write_model
from runtime import Evaluator
from runtime.distributed.processes import launch
from runtime.language.models import Targets, lazy_causal_lm, locate_model
from runtime.language.perplexity.reference import next_token_loss
from runtime.language.perplexity.scores import mean_target_loss


class Work(NamedTuple):
    """What one process evaluates."""

    directory: str
    vocabulary: int
    rows: int
    length: int
    full: bool
    """Whether with the logits of the whole micro-batch."""


def measured(work: Work) -> tuple[float, int]:
    """The loss of one micro-batch, and the bytes of the peak above the weights."""
    torch.set_num_threads(1)
    specs = lazy_causal_lm(locate_model(work.directory)).specs(scoring=not work.full)
    loss_fn = next_token_loss if work.full else mean_target_loss
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(work.vocabulary, (work.rows, work.length + 1), generator=generator)
    inputs, labels = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    with Evaluator(specs, stages=1, loss_fn=loss_fn) as evaluator:
        few = (inputs[:1, :2].contiguous(), labels[:1, :2].contiguous())
        for pair in (few, (inputs, labels)):  # the first also touches every weight
            Path("/proc/self/clear_refs").write_text("5")  # the peak is the present
            before = peak_bytes()
            data = pair if work.full else (pair[0], Targets.of(pair[1]))
            result = evaluator.evaluate([data])
        return result.loss, peak_bytes() - before


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--vocabulary", type=int, default=128_000)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=2048, help="targets of a row")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--full", action="store_true", help="also with all logits at once")
    options = parser.parse_args()
    size = 4 * options.vocabulary * options.rows * options.length
    print(f"{options.rows} x {options.length} targets of {options.vocabulary} tokens:", end=" ")
    print(f"the logits take {size / MIB:.0f} MiB in float32")
    with tempfile.TemporaryDirectory() as directory:
        write_model(Path(directory), hidden=options.hidden, blocks=2, vocabulary=options.vocabulary)
        for full in (False, True)[: 1 + options.full]:
            work = Work(directory, options.vocabulary, options.rows, options.length, full)
            loss, peak = launch(1, measured, work)
            name = "all logits" if full else "in pieces"
            print(f"{name}: loss {loss:.7f}, peak {peak / MIB:.0f} MiB, {peak / size:.3f} of them")


if __name__ == "__main__":
    main()
