"""Command lines in which an option that holds one value is given once.

Otherwise the last of several would count, and the others be lost without a word.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

Function = TypeVar("Function", bound=Callable[..., Any])


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


class Command(TyperCommand):
    """A command whose options are given once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what comes behind the command."""
        _require_once(self, ctx, args)
        return super().parse_args(ctx, args)


class Group(TyperGroup):
    """Commands, and options before them that are given once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what comes before the command."""
        _require_once(self, ctx, args)
        return super().parse_args(ctx, args)


class CommandLine(typer.Typer):
    """A command line; it is declared as typer's."""

    def __init__(self, **settings: Any) -> None:
        """Declare a command line, without completion scripts and without decorated tracebacks."""
        super().__init__(
            cls=Group,
            add_completion=False,
            pretty_exceptions_enable=False,
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
    sentence = " ".join(error.format_message().split())
    parameter, context = getattr(error, "param", None), getattr(error, "ctx", None)
    if parameter is None or context is None:
        return sentence
    word = context.meta.get(_WORDS, {}).get(parameter.name)
    if word is None or repr(word) in sentence:
        return sentence
    return f"{sentence.rstrip('.')}, but it is {word!r}"
