"""The commands with their arguments and options, from the definitions that `--help` prints."""

from typing import Any, get_args

from typer.main import get_command

from docs_extension.markdown_table import table
from runtime.cli import app as pipeval
from schedcc.cli import app as schedcc

_APPS = {"schedcc": schedcc, "pipeval": pipeval}


def commands(name: str) -> str:
    """Markdown of a program and its commands: what each does, its examples, arguments and options.

    Args:
        name: `schedcc` or `pipeval`.
    """
    program = get_command(_APPS[name])
    parts = [_command(name, program)]
    parts += [_command(f"{name} {word}", command) for word, command in _inside(program)]
    return "\n\n".join(parts)


def _inside(program: Any) -> list[tuple[str, Any]]:
    return list(program.commands.items())


def _command(title: str, command: Any) -> str:
    text, examples = _parted(command.help or "")
    shown = [p for p in command.params if not getattr(p, "hidden", False)]
    parts = [f"## `{title}`", *text]
    if examples:
        parts.append("\n".join(["```text", *examples, "```"]))
    rows = [[_names(p), _values(p), _meaning(p)] for p in shown]
    return "\n\n".join([*parts, *([table(["option", "value", "meaning"], rows)] if rows else [])])


def _parted(text: str) -> tuple[list[str], list[str]]:
    """The paragraphs of a help, and the command lines among them."""
    prose: list[str] = []
    examples: list[str] = []
    for paragraph in text.split("\n\n"):
        first, *lines = paragraph.strip("\b\n ").splitlines() or [""]
        if first in ("Example:", "Examples:"):
            examples += [line.strip() for line in lines]
        else:
            prose.append(" ".join([first, *map(str.strip, lines)]))
    return prose, examples


def _names(parameter: Any) -> str:
    names = [*parameter.opts, *parameter.secondary_opts]
    shown = ", ".join(f"`{name}`{{ .whole }}" for name in names)  # not broken at hyphens
    return shown if parameter.param_type_name == "option" else f"{shown} (argument)"


def _values(parameter: Any) -> str:
    """The type of a value, or the values to choose from; nothing for a flag."""
    kind = parameter.type_descriptor.annotation
    if getattr(parameter, "is_flag", False):
        return ""
    choices = [f"`{choice}`" for choice in get_args(kind) if isinstance(choice, str)]
    if choices:
        return ", ".join(choices)
    inner = get_args(kind)
    return str(getattr(inner[0] if inner else kind, "__name__", kind)).lower()


def _meaning(parameter: Any) -> str:
    default = parameter.default
    shown = default not in (None, False, (), []) and not callable(default)
    notes = ["Required."] * parameter.required + [f"Default: `{default}`."] * shown
    notes += ["May be given several times."] * (
        parameter.multiple and "several" not in (parameter.help or "")
    )
    return " ".join([parameter.help or "", *notes]).strip()
