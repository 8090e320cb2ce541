"""Command lines in which an option that holds one value is given once.

Otherwise the last of several would count, and the others be lost without a word.
"""

import re
from collections import Counter
from collections.abc import Callable
from inspect import cleandoc
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

Function = TypeVar("Function", bound=Callable[..., Any])


_EXAMPLES = re.compile(r"\n\n(Examples?:\n)")

_WORDS = "schedcc.words"
"""Where a context keeps what was given, as it was given."""


class UsageError(ValueError):
    """Words that the command line does not understand."""


class RepeatedOptionError(ValueError):
    """An option was given more than once, and has room for one value."""


def _require_once(command: Any, context: Any, arguments: list[str]) -> None:
    """Refuse options that are repeated, of all but those that are lists."""
    words, _, given = command.make_parser(context).parse_args(args=list(arguments))
    context.meta[_WORDS] = words
    for parameter, times in Counter(given).items():
        if times > 1 and parameter.param_type_name == "option" and not parameter.multiple:
            name = max(parameter.opts, key=len)
            raise RepeatedOptionError(f"{name} is given {times} times, needed once at most")


def _unwrapped(text: str | None) -> str | None:
    """A help whose examples keep their lines, which is what click's mark before them asks for."""
    return text and _EXAMPLES.sub("\n\n\b\n\\1", cleandoc(text))


class Command(TyperCommand):
    """A command whose options are given once."""

    def __init__(self, *args: Any, help: str | None = None, **settings: Any) -> None:
        """Declare a command, as typer does."""
        super().__init__(*args, help=_unwrapped(help), **settings)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what comes behind the command."""
        _require_once(self, ctx, args)
        return super().parse_args(ctx, args)


class Group(TyperGroup):
    """Commands, and options before them that are given once."""

    def __init__(self, *args: Any, help: str | None = None, **settings: Any) -> None:
        """Declare the commands, as typer does."""
        super().__init__(*args, help=_unwrapped(help), **settings)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what comes before the command."""
        _require_once(self, ctx, args)
        return super().parse_args(ctx, args)


class CommandLine(typer.Typer):
    """A command line; it is declared as typer's."""

    def __init__(self, **settings: Any) -> None:
        """Declare a command line whose help is plain, and whose tracebacks are Python's own."""
        super().__init__(
            cls=Group,
            pretty_exceptions_enable=False,
            rich_markup_mode=None,  # tables cut the names of options where a terminal is narrow
            context_settings={"help_option_names": ["-h", "--help"]},
            **settings,
        )

    def command(
        self,
        name: str | None = None,
        *,
        cls: type[TyperCommand] | None = Command,
        **settings: Any,
    ) -> Callable[[Function], Function]:
        """Declare a command."""
        return super().command(name, cls=cls, **settings)

    def status(self) -> int:
        """Run what the process was called with.

        Returns:
            The exit status that the command asks for.

        Raises:
            UsageError: an option is unknown, lacks its value, or has one of another type.
            ValueError: what the command raises.
        """
        try:
            return self(standalone_mode=False) or 0
        except Exception as error:
            # Typer's own click and the one it used before have classes of their own.
            if not hasattr(error, "format_message"):
                raise
            raise UsageError(_sentence(error)) from None


def _sentence(error: Any) -> str:
    """What typer says, and the word that it is about, which it does not always say."""
    sentence = " ".join(error.format_message().split()).replace("Value error, ", "")
    parameter, context = getattr(error, "param", None), getattr(error, "ctx", None)
    if parameter is None or context is None:
        return sentence
    word = context.meta.get(_WORDS, {}).get(parameter.name)
    if word is None or repr(word) in sentence:
        return sentence
    return f"{sentence.rstrip('.')}, but it is {word!r}"
