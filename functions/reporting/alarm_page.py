"""Page of one alarm: what changed and when, ordered by the contribution to the loss."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from toque.functions.monitoring.diagnosis.what_changed import Cause, Causes
from toque.functions.reporting.html import document, figure_html, table
from toque.functions.reporting.timeline import TimelineEvent

_COLOURS = {
    "feature": "#2f6db0",
    "slice": "#8e5bb0",
    "table": "#b0822f",
    "version": "#0b6e4f",
    "incident": "#c0392b",
}
_SHOWN = 15


def render_alarm(found: Causes, events: Sequence[TimelineEvent]) -> str:
    """Render the whole page as HTML. events: of the model, in order; those of the alarm's time are shown."""
    alarm = found.alarm
    compared = (
        f"{found.text}. Compared: {found.rows:,} labelled requests from {alarm.start:%Y-%m-%d %H:%M} to "
        f"{alarm.end:%Y-%m-%d %H:%M} UTC with {found.rows_before:,} from {found.before:%Y-%m-%d %H:%M} on."
    )
    summary = [
        alarm.text,
        compared,
        "Parts of columns that go together overlap: they rank, and do not add up. ± is one standard error.",
    ]
    within = [one for one in events if found.before <= one.at <= alarm.raised_at]
    sections = [
        ("What contributed to the loss", _bars(found.causes)),
        ("What changed, and when", _causes(found.causes)),
        ("What happened in that time", _event_table(within)),
    ]
    return document(f"{alarm.model}: {alarm.monitor} {alarm.subject}", summary, sections)


def _bars(causes: Sequence[Cause]) -> str:
    known = [one for one in causes if one.contribution is not None][:_SHOWN][::-1]
    if not known:
        return "<p>Nothing that changed has a known part in the loss.</p>"
    figure = go.Figure()
    figure.add_bar(
        y=[f"{one.kind}: {one.what}" for one in known],
        x=[one.contribution for one in known],
        error_x={"type": "data", "array": [one.error or 0.0 for one in known]},
        marker_color=[_COLOURS[one.kind] for one in known],
        orientation="h",
    )
    figure.update_layout(xaxis_title="part in the change of the mean loss", yaxis={"automargin": True})
    return figure_html(figure, "")


def _causes(causes: Sequence[Cause]) -> str:
    rows = [
        [
            one.kind,
            one.what,
            "" if one.since is None else f"{one.since:%Y-%m-%d %H:%M}",
            "" if one.contribution is None else f"{one.contribution:+.4f} ± {one.error or 0.0:.4f}",
            one.text,
        ]
        for one in causes
    ]
    return table(["", "what", "since (UTC)", "part in the loss", ""], rows)


def _event_table(events: Sequence[TimelineEvent]) -> str:
    rows = [[f"{one.at:%Y-%m-%d %H:%M}", one.kind, one.text, one.actor] for one in events]
    return table(["when (UTC)", "what", "", "by"], rows)
