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


def _unwrapped(text: str | None) -> str | None:
    """A help whose examples keep their lines, which is what click's mark before them asks for."""
    return text and _EXAMPLES.sub("\n\n\b\n\\1", cleandoc(text))


class _Once:
    """What is common to a command and a group of them: options are given once."""

    make_parser: Callable[..., Any]

    def __init__(self, *args: Any, help: str | None = None, **settings: Any) -> None:
        """Declare it, as typer does."""
        super().__init__(*args, help=_unwrapped(help), **settings)  # type: ignore[call-arg]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what comes behind its name.

        Raises:
            RepeatedOptionError: an option that is no list is repeated.
        """
        words, _, given = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta[_WORDS] = words
        for parameter, times in Counter(given).items():
            if times > 1 and parameter.param_type_name == "option" and not parameter.multiple:
                name = max(parameter.opts, key=len)
                raise RepeatedOptionError(f"{name} is given {times} times, needed once at most")
        return super().parse_args(ctx, args)  # type: ignore[misc,no-any-return]


class Command(_Once, TyperCommand):
    """A command whose options are given once."""


class Group(_Once, TyperGroup):
    """Commands, and options before them that are given once."""


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
