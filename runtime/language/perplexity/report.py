"""The result of an evaluation, for a person to read."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from schedcc.io.plain_text import visible
from schemas import LanguageModelEvaluation, StageSummary, Verification

_WIDTH = 100
"""The least width of the report, where the terminal (or its absence) would give less."""

_DIVISION = {"whole": "", "lines": " at most, each line alone", "packed": ", of packed lines"}


def print_report(evaluation: LanguageModelEvaluation) -> None:
    """Print loss, perplexity and speed, where time went, and the verification if there is one."""
    console = Console(highlight=False, emoji=False)
    console.width = max(console.width, _WIDTH)
    console.print(_headline(evaluation), soft_wrap=True)
    console.print(
        f"loss [bold]{evaluation.loss:.6f}[/] nats per token   "
        f"perplexity [bold]{_perplexity(evaluation.perplexity)}[/]",
        soft_wrap=True,
    )
    console.print(
        f"{evaluation.tokens} tokens in {evaluation.seconds:.1f} s: "
        f"[bold]{evaluation.tokens_per_second:.0f}[/] tokens per second "
        f"(after {evaluation.setup_seconds:.1f} s to start and load)",
        soft_wrap=True,
    )
    console.print(_time_table(evaluation.stage_summaries))
    if evaluation.verification is not None:
        console.print(_verdict(evaluation.loss, evaluation.verification), soft_wrap=True)


def _headline(evaluation: LanguageModelEvaluation) -> Text:
    windows = _plural(evaluation.windows, "window")
    micro_batches = _plural(evaluation.micro_batches, "micro-batch")
    stages, threads = _plural(evaluation.stages, "stage"), _plural(evaluation.threads, "thread")
    if evaluation.ranks != evaluation.stages:
        stages += f" on {_plural(evaluation.ranks or 1, 'rank')}, {evaluation.schedule},"
    sizes = f"{windows} of {evaluation.sequence_length} tokens{_DIVISION[evaluation.documents]}"
    return Text.assemble(  # names from outside may look like markup
        (visible(evaluation.model), "bold"),
        f" on {visible(evaluation.text)}: {sizes}, "
        f"{micro_batches} of {evaluation.micro_batch_size} over {stages} "
        f"({evaluation.backend}, {threads} each)",
    )


def _perplexity(value: float | None) -> str:
    return "beyond 64-bit numbers" if value is None else f"{value:.4f}"


def _time_table(stages: tuple[StageSummary, ...]) -> Table:
    table = Table(box=box.ROUNDED, title="where time went, in seconds", title_justify="left")
    for heading in ("stage", "layers", "parameters", "forward", "transfers", "load", "epilogue"):
        table.add_column(heading, justify="right")
    table.add_column("other", justify="right")
    for stage in stages:
        seconds = (
            stage.forward_seconds,
            stage.transfer_seconds,
            stage.load_seconds,
            stage.epilogue_seconds,
            stage.other_seconds,
        )
        table.add_row(
            f"{', '.join(map(str, stage.stages))} ({stage.device})",
            f"{stage.first_layer}-{stage.first_layer + stage.layers - 1}"
            if len(stage.stages) == 1
            else str(stage.layers),
            f"{stage.parameters / 1e6:.1f} M",
            *(f"{value:.2f}" for value in seconds),
        )
    return table


def _verdict(loss: float, verification: Verification) -> str:
    verdict = "[bold green]identical[/]" if verification.passed else "[bold red]DIFFERENT[/]"
    return (
        f"one process: {verdict}: loss {verification.reference_loss!r} there, {loss!r} here "
        f"(relative difference {verification.relative_difference:.1e}); logits bit-identical in "
        f"{verification.identical_logits} of {verification.micro_batches} micro-batches"
    )


def _plural(count: int, noun: str) -> str:
    ending = "" if count == 1 else "es" if noun.endswith("ch") else "s"
    return f"{count} {noun}{ending}"
