"""What notebooks show: plans and timelines as pictures, reports as tables."""

from html import escape

from schedcc.io.plain_text import visible
from schedcc.pictures.page import page
from schedcc.pictures.panel import Panel
from schedcc.pictures.planned import plan_panel, timeline_panel
from schemas import PipelinePlan, Report, StagePlan, Timeline

MOST_SHOWN = 20_000
"""Instructions of a picture: a notebook keeps it in its file."""


def notebook_html(value: object) -> str | None:
    """The HTML for a value; `None`: its text says as much."""
    if isinstance(value, Report):
        return _report(value)
    if isinstance(value, PipelinePlan | StagePlan):
        steps = (
            (value.steps,) if isinstance(value, StagePlan) else (p.steps for p in value.programs)
        )
        size = sum(len(step) for program in steps for step in program)
        return _frame(plan_panel(value)) if size <= MOST_SHOWN else _too_large(size)
    if isinstance(value, Timeline):
        size = sum(len(stage.spans) for stage in value.stages)
        return _frame(timeline_panel(value)) if size <= MOST_SHOWN else _too_large(size)
    return None


def _frame(panel: Panel) -> str:
    """A page in a frame, whose script can reach nothing of the notebook."""
    height = min(760, 330 + 34 * len(panel.ranks))
    document = escape(page(panel.title, [panel]))
    return (
        f'<iframe sandbox="allow-scripts" title="{escape(panel.title)}" srcdoc="{document}" '
        f'style="width:100%;height:{height}px;border:0"></iframe>'
    )


def _too_large(size: int) -> str:
    return (
        f"<p>{size:,} instructions, more than the {MOST_SHOWN:,} that a notebook shows: "
        "<code>schedcc show --html FILE</code> draws them.</p>"
    )


def _report(report: Report) -> str:
    errors = sum(finding.count for finding in report.errors())
    verdict = "sound" if report.ok else f"{errors} finding{'s' if errors != 1 else ''}"
    transport = "" if report.transport is None else f"; {report.transport}"
    asked = f"{', '.join(report.checks)}{transport}"
    rows = "".join(
        f"<tr><td>{finding.severity}</td>"
        f'<td style="text-align:left;white-space:pre-wrap">{escape(visible(finding, lines=True))}'
        "</td></tr>"
        for finding in report.findings
    )
    table = f"<table>{rows}</table>" if rows else ""
    return f"<p><b>{verdict}</b> ({escape(asked)})</p>{table}"
