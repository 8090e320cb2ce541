"""The main job on real input: SmolLM2-135M on Python's language reference, over pipeline stages.

Every step is a command that can be typed by hand; it is printed before it runs. The last one shows
that the number of stages changes neither the loss nor a single bit of the logits.
"""

import subprocess
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from schemas import LanguageModelEvaluation

BIN = Path(sys.executable).parent
CONSOLE = Console(highlight=False)
CONSOLE.width = max(CONSOLE.width, 100)
WINDOWS, STAGES = 24, (1, 2, 3, 4)


def command(*arguments: object) -> list[str]:
    """Print a command and return it, with the program of this environment."""
    words = list(map(str, arguments))
    CONSOLE.print(f"\n[bold]$ {' '.join(words)}[/]", soft_wrap=True)
    return [str(BIN / words[0]), *words[1:]]


def compare_stages() -> bool:
    """Evaluate over 1 to 4 stages, each against one process with the unsplit model."""
    table = Table(box=box.ROUNDED, title="against one process", title_justify="left")
    for heading in (
        "stages",
        "loss",
        "loss of one process",
        "difference",
        "identical micro-batches",
    ):
        table.add_column(heading, justify="right")
    passed = True
    for stages in STAGES:
        few = ("--max-windows", 4, "--sequence-length", 256, "--threads", 1)
        words = command("pipeval", "--stages", stages, *few, "--verify", "--json")
        done = subprocess.run(words, stdout=subprocess.PIPE, check=False)
        evaluation = LanguageModelEvaluation.model_validate_json(done.stdout)
        verification = evaluation.verification
        assert verification is not None
        passed &= verification.passed
        table.add_row(
            str(stages),
            repr(evaluation.loss),
            repr(verification.reference_loss),
            f"{verification.relative_difference:.0e}",
            f"{verification.identical_logits} of {verification.micro_batches}",
        )
    CONSOLE.print(table)
    return passed


def main() -> int:
    """Run the demonstration; the exit status is that of the comparison."""
    subprocess.run(command("schedcc", "show", "-M", 4, "-S", 3), check=True)
    main_job = command("pipeval", "--model", "smollm2", "--stages", 2, "--max-windows", WINDOWS)
    subprocess.run(main_job, check=True)
    passed = compare_stages()
    verdict = "the same loss, and the same logits, bit for bit" if passed else "DIFFERENT results"
    CONSOLE.print(f"\nStages {STAGES[0]} to {STAGES[-1]}: [bold]{verdict}[/].")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
