"""Agreement: what ranks compare, and an error that names two of them where they differ."""

from collections.abc import Mapping, Sequence

from runtime.failure.errors import AgreementError


def require_same(what: str, values: Sequence[object]) -> None:
    """Compare what the stages say of themselves, by stage id; `None` says nothing.

    Raises:
        AgreementError: two stages differ; the message names them.
    """
    require_same_by_name(what, {f"stage {stage}": value for stage, value in enumerate(values)})


def require_same_by_name(what: str, values: Mapping[str, object]) -> None:
    """The same, by the names of those who say it."""
    given = [(name, value) for name, value in values.items() if value is not None]
    for name, value in given[1:]:
        first, expected = given[0]
        if value != expected:
            raise AgreementError(f"{what} differs: {expected!r} on {first}, {value!r} on {name}")
