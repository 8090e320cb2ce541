"""What was found, with the versions that it was found with: as Markdown and as JSON."""

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "pydantic", "networkx", "numpy")


@dataclass(frozen=True)
class Found:
    """What one row found."""

    held: bool
    """Whether what it says is true."""
    lines: list[str] = field(default_factory=list)
    """In words, a line each."""
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """One row of the table."""

    number: int
    title: str
    status: str
    """held, did not hold, failed, out of time or left out."""
    seconds: float
    lines: list[str]
    numbers: dict[str, Any] = field(default_factory=dict)


def versions(*, dry: bool) -> dict[str, str]:
    """Of everything that decides what is found."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    if dry or not torch.cuda.is_available():
        return found | {"GPU": "none: a dry run on the CPU"}
    nccl: Any = torch.cuda.nccl
    properties = torch.cuda.get_device_properties(0)
    return found | {
        "CUDA": str(torch.version.cuda),
        "NCCL": ".".join(map(str, nccl.version())),
        "GPU": f"{torch.cuda.device_count()} x {properties.name}, "
        f"{properties.total_memory / 2**30:.0f} GiB, "
        f"{properties.multi_processor_count} multiprocessors",
    }


def markdown(results: Iterable[Result], of: dict[str, str]) -> str:
    """The versions, and the table."""
    lines = [f"{', '.join(f'{name} {value}' for name, value in of.items())}", ""]
    lines += ["| | | | s | |", "|---|---|---|---|---|"]
    for result in results:
        found = "<br>".join(line.replace("|", "\\|").replace("\n", " ") for line in result.lines)
        lines.append(
            f"| {result.number} | {result.title} | {result.status} | {result.seconds:.1f} | "
            f"{found} |"
        )
    return "\n".join(lines) + "\n"


def write(folder: Path, results: list[Result], of: dict[str, str]) -> None:
    """Write `gpu.md` and `gpu.json`; after every row, since the next one may end badly."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.md").write_text(markdown(results, of))
    content = {"versions": of, "rows": [asdict(result) for result in results]}
    (folder / "gpu.json").write_text(json.dumps(content, indent=2) + "\n")
