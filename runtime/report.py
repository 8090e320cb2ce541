"""The result of an evaluation, for a person to read."""

from rich import box
from rich.console import Console
from rich.table import Table

from schemas import LanguageModelEvaluation, StageSummary, Verification


def print_report(evaluation: LanguageModelEvaluation) -> None:
    """Print loss, perplexity and speed, where time went, and the verification if there is one."""
    console = Console(highlight=False)
    size = f"{evaluation.windows} windows of {evaluation.sequence_length} tokens"
    console.print(
        f"[bold]{evaluation.model}[/] on {evaluation.text}: {size}, {evaluation.micro_batches} "
        f"micro-batches of {evaluation.micro_batch_size} over {evaluation.stages} stages "
        f"({evaluation.backend}, {evaluation.threads} threads each)"
    )
    console.print(
        f"loss [bold]{evaluation.loss:.6f}[/] nats per token   "
        f"perplexity [bold]{evaluation.perplexity:.4f}[/]"
    )
    console.print(
        f"{evaluation.tokens} tokens in {evaluation.seconds:.1f} s: "
        f"[bold]{evaluation.tokens_per_second:.0f}[/] tokens per second "
        f"(after {evaluation.setup_seconds:.1f} s to start and load)"
    )
    console.print(_time_table(evaluation.stage_summaries))
    if evaluation.verification is not None:
        console.print(_verdict(evaluation.loss, evaluation.verification))


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
            f"{stage.stage_id} ({stage.device})",
            f"{stage.first_layer}-{stage.first_layer + stage.layers - 1}",
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
