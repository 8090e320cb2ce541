"""The options of `pipeval` without a subcommand."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from schedcc.io.bounded import STANDARD_INPUT


def text_path(word: str) -> Path:
    """The path of a text; `-` alone is standard input, and `./-` is the file of that name."""
    path = Path(word)
    return path.absolute() if path == STANDARD_INPUT and word != "-" else path


Model = Annotated[
    str,
    typer.Option(help="smollm2, a GGUF file, or a directory: Hugging Face's, or by layers."),
]
Text = Annotated[
    list[Path] | None,
    typer.Option(
        parser=text_path,
        metavar="PATH",
        help="File, directory, pipe, or - for standard input; may be given several times, and "
        "all texts count. JSONL and parquet hold records; .gz and .zst are read as they are. "
        "Default: Python's language reference.",
    ),
]
Field = Annotated[
    str | None,
    typer.Option(
        help="What records call their text; default: text. If it is given, standard input, "
        "pipes, and files with no suffix of a text hold JSONL."
    ),
]
Stages = Annotated[
    int | None,
    typer.Option(
        "--stages",
        "-S",
        help="S, the number of stages; default: 2, or with R two on each rank if possible.",
    ),
]
Schedule = Annotated[
    str | None,
    typer.Option(
        help="inference (fill and drain), interleaved, interleaved_wide or v_shape; default: "
        "inference."
    ),
]
Ranks = Annotated[
    int | None,
    typer.Option("--ranks", "-R", help="R, the number of processes; default: one a stage."),
]
Plan = Annotated[
    Path | None,
    typer.Option(help="Plan to be run as it is: JSON, or a CSV file of torch's."),
]
MicroBatchSize = Annotated[int, typer.Option(help="Windows in a micro-batch.")]
SequenceLength = Annotated[int, typer.Option(help="Tokens in a window.")]
MaxWindows = Annotated[
    int | None, typer.Option(help="Evaluate only the first windows; default: all.")
]
Documents = Annotated[
    Literal["whole", "texts", "lines", "packed"],
    typer.Option(
        help="whole: a text is one document; the first token of each window is not predicted. "
        "texts: each text (a file, or a record) is predicted alone, from its first token on. "
        "lines: the same of each line and of each record, as lm-evaluation-harness does. "
        "packed: lines and records one behind the other in common windows, so that documents "
        "see those before them. Separators are never predicted."
    ),
]
Bos = Annotated[
    bool | None,
    typer.Option(
        help="Put the token for the beginning of a text before every window; default: what the "
        "tokenizer does, for whole and packed documents."
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        help="Tokens between the beginnings of windows, which overlap then; no token is "
        "predicted twice."
    ),
]
ChatTemplate = Annotated[
    bool,
    typer.Option(
        "--chat-template",
        help="Write texts with the model's chat template: lists of messages in records, and "
        "other texts as a message of a user.",
    ),
]
SeparatorId = Annotated[
    int | None,
    typer.Option(
        help="Token before each document, as context; default: the model's bos or eos token."
    ),
]
Dtype = Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the weights.")]
Overlap = Annotated[
    bool, typer.Option(help="Let transfers cross the forwards; the results are the same.")
]
Channels = Annotated[
    Literal["memory", "shared", "per-edge"] | None,
    typer.Option(
        help="What activations travel through; default: memory that the CPUs of a host share, "
        "one process group for all GPUs."
    ),
]
Threads = Annotated[
    int | None, typer.Option(help="Threads of each process; default: its share of the cores.")
]
Verify = Annotated[
    bool,
    typer.Option("--verify", help="Compare with the unsplit model in one process as well."),
]
Record = Annotated[
    Path | None,
    typer.Option(help="New directory where each stage writes what it executes, as it goes."),
]
Timeout = Annotated[
    float, typer.Option(help="Seconds without any progress after which the run is ended.")
]
CudaGraphs = Annotated[
    bool,
    typer.Option(
        "--cuda-graphs",
        help="Capture forwards into CUDA graphs: for small models, which the host cannot "
        "launch as fast as a GPU runs them.",
    ),
]
CheckFinite = Annotated[
    bool,
    typer.Option(
        help="If a loss is NaN or infinite, which is an error in any case, name the stage "
        "where it began."
    ),
]
PerDocument = Annotated[
    Path | None, typer.Option(help="File for the scores of documents, as JSONL.")
]
PerToken = Annotated[Path | None, typer.Option(help="File for the losses of tokens, as JSONL.")]
Resume = Annotated[
    Path | None,
    typer.Option(
        help="Directory where results are kept as they come: a run that was ended goes on there."
    ),
]
Partition = Annotated[
    str | None,
    typer.Option(
        help="The first layer of each stage, and the number of layers, as 0,12,32; default: "
        "balanced by arithmetic."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Version = Annotated[bool, typer.Option("--version", help="Show the version and exit.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
