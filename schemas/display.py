"""How values show themselves in a notebook: as whoever knows how to draw them says.

Drawing needs the compiler, which stands on this package; so it hands its way of drawing in.
"""

from collections.abc import Callable

Display = Callable[[object], str | None]

_display: list[Display] = []


def display_by(display: Display) -> None:
    """Let values show themselves as the HTML that `display` makes of them."""
    _display[:] = [display]


class Displayed:
    """A value that a notebook shows as a picture or a table (`_repr_html_` of IPython)."""

    def _repr_html_(self) -> str | None:
        """The HTML; `None`, which lets the notebook print the value, if nobody draws."""
        return _display[0](self) if _display else None
