"""The result of an evaluation, for a person to read."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from schedcc.io.plain_text import visible
from schemas import LanguageModelEvaluation, StageSummary, Verification

_WIDTH = 100
"""The least width of the report, where the terminal (or its absence) would give less."""

_DIVISION = {
    "whole": "",
    "texts": " at most, each text alone",
    "lines": " at most, each line alone",
    "packed": ", of packed lines",
}


def print_report(evaluation: LanguageModelEvaluation) -> None:
    """Print loss, perplexity and speed, where time went, and the verification if there is one."""
    console = Console(highlight=False, emoji=False)
    console.width = max(console.width, _WIDTH)
    console.print(_headline(evaluation), soft_wrap=True)
    console.print(
        f"loss [bold]{evaluation.loss:.6f}[/]{_error(evaluation)} nats per token   "
        f"perplexity [bold]{_perplexity(evaluation.perplexity)}[/]",
        soft_wrap=True,
    )
    console.print(_units(evaluation), soft_wrap=True)
    console.print(f"targets: {evaluation.targets}", soft_wrap=True)
    console.print(_execution(evaluation), soft_wrap=True)
    console.print(
        f"{evaluation.tokens} tokens in {evaluation.seconds:.1f} s: "
        f"[bold]{evaluation.tokens_per_second:.0f}[/] tokens per second "
        f"(after {evaluation.setup_seconds:.1f} s to start and load){_resumed(evaluation)}",
        soft_wrap=True,
    )
    console.print(_time_table(evaluation.stage_summaries))
    console.print(_advice(evaluation), soft_wrap=True)
    if evaluation.verification is not None:
        console.print(_verdict(evaluation.loss, evaluation.verification), soft_wrap=True)


def _headline(evaluation: LanguageModelEvaluation) -> Text:
    windows = _plural(evaluation.windows, "window")
    micro_batches = _plural(evaluation.micro_batches, "micro-batch")
    stages, threads = _plural(evaluation.stages, "stage"), _plural(evaluation.threads, "thread")
    if evaluation.ranks != evaluation.stages:
        stages += f" on {_plural(evaluation.ranks or 1, 'rank')}, {evaluation.schedule}"
    sizes = f"{windows} of {evaluation.sequence_length} tokens{_DIVISION[evaluation.documents]}"
    return Text.assemble(  # names from outside may look like markup
        (visible(evaluation.model), "bold"),
        f" on {visible(evaluation.text)}: {sizes}, "
        f"{micro_batches} of {evaluation.micro_batch_size} over {stages} "
        f"({evaluation.backend}, {threads} each)",
    )


def _execution(evaluation: LanguageModelEvaluation) -> Text:
    return Text(
        f"executed: {visible(evaluation.schedule)}, {evaluation.variant}, {evaluation.dtype} "
        f"weights, channels {evaluation.channels}, schedcc {evaluation.version}"
    )


def _perplexity(value: float | None) -> str:
    return "beyond 64-bit numbers" if value is None else f"{value:.4f}"


def _error(evaluation: LanguageModelEvaluation) -> str:
    error = evaluation.loss_standard_error
    return "" if error is None else f" ± {error:.6f}"


def _resumed(evaluation: LanguageModelEvaluation) -> str:
    done = evaluation.resumed_micro_batches
    return f"; {_plural(done, 'micro-batch')} had been evaluated before" if done else ""


def _units(evaluation: LanguageModelEvaluation) -> str:
    if evaluation.bits_per_byte is None:
        return "per word and byte: not known, since this tokenizer tells no places in the text"
    return (
        f"{evaluation.bits_per_byte:.6f} bits per byte   "
        f"perplexity of a byte {_perplexity(evaluation.byte_perplexity)}, "
        f"of a word {_perplexity(evaluation.word_perplexity)}   "
        f"({_plural(evaluation.bytes or 0, 'byte')}, {_plural(evaluation.words or 0, 'word')}, "
        f"{_plural(evaluation.document_count, 'document')})"
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2g} s"


def _advice(evaluation: LanguageModelEvaluation) -> Text:
    slowest, advice = evaluation.bottleneck_stage, evaluation.advice
    if evaluation.stages == 1:
        return Text("one stage, which nothing waits for")
    said = f"stage {slowest} takes longest"
    if advice is None:
        return Text(f"{said}; for these times no partition is much faster")
    return Text(
        f"{said}; with another partition the evaluation would take about "
        f"{_seconds(advice.predicted_seconds)} instead of {_seconds(advice.predicted_now)}:\n"
        f"  {visible(advice.command)}"
    )


def _time_table(stages: tuple[StageSummary, ...]) -> Table:
    table = Table(
        box=box.ROUNDED, pad_edge=False, title="where time went, in seconds", title_justify="left"
    )
    for heading in ("stage", "layers", "params", "forward", "data", "receive", "send"):
        table.add_column(heading, justify="right")
    for heading in ("epilogue", "other"):
        table.add_column(heading, justify="right")
    for stage in stages:
        seconds = (
            stage.forward_seconds,
            stage.load_seconds,
            stage.receive_seconds,
            stage.send_seconds,
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
