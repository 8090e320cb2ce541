"""Files of costs for `schedcc simulate`, `compare` and `trace`."""

from pathlib import Path

from pydantic import ValidationError

from schedcc.io.bounded import read_bounded, shown
from schedcc.io.plan_files import explain
from schedcc.io.strict_json import parse
from schemas import Costs

MOST_BYTES = 2**24
"""Of a file of costs."""


def read_costs(path: Path) -> Costs:
    """Read costs: a JSON object with the fields of `Costs`, in seconds and bytes.

    Args:
        path: The file; `-`: standard input.

    Raises:
        ValueError: the file cannot be read, or holds no costs; the message is one line.
    """
    content = read_bounded(path, MOST_BYTES)
    try:
        data = parse(content)
    except ValueError as error:
        raise ValueError(f"{shown(path)}: not JSON: {error}") from error
    try:
        return Costs.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"{shown(path)}: not costs: {explain(error)}") from error
