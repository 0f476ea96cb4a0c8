"""`toque trace`: what became of one request, from the id of its prediction or of its trace."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from toque.ray_apps.cli.arguments import arg
from toque.ray_apps.cli.command import Commands, Given, add
from toque.ray_apps.cli.output import chosen, columns, facts, note, say, see_page, table, value

_ID = arg("id", "ID of a prediction, or of a trace, as the header `traceparent` has it")
_MODEL = arg("--model NAME", "read the log of this model only, which is quicker")
_DAYS = arg("--days N", "how far to look back (default: %(default)s)", type=int, default=7)


def register(commands: Commands) -> None:
    """Add the command of this module."""
    add(commands, "trace", _trace, _ID, _MODEL, _DAYS)


def _trace(given: Given) -> None:
    """Show what became of a request: its stages, its label, and the verdicts that used it."""
    asked = {"days": given.days} | ({"model": given.model} if given.model else {})
    found = given.client.get(f"/traces/{quote(given.id, safe='')}", **asked)
    how = chosen(given.output)
    if how == "json":
        value(found)
        return
    if how == "tsv":
        table(how, _PREDICTION, found["predictions"])
        return
    for number, each in enumerate(found["predictions"]):
        if number:
            say("")
        _show(given, each)
    see_page(given.output, given.client.page("predictions", given.id))
    if not any(each["stages"] for each in found["predictions"]):
        note(
            "no stages were kept of this request: traces are off (`toque config`), or it was neither slow nor sampled"
        )


def _show(given: Given, prediction: dict[str, Any]) -> None:
    facts(given.output, _PREDICTION, prediction)
    for heading, rows in ((_STAGES, prediction["stages"]), (_VERDICTS, prediction["verdicts"])):
        if rows:
            say("")
            table(given.output, heading, rows)


_PREDICTION = columns(
    "prediction: prediction_id | model | version | arm | shadow | predicted at: predicted_at | latency, ms: latency_ms"
    " | outputs | label | observed at: observed_at | trace: trace_id | kept as: kept",
    wide="span: span_id",
)
_STAGES = columns("stage: name | began after, ms: begin_ms | took, ms: duration_ms")
_VERDICTS = columns(
    "verdict of: by | name | subject | verdict | what: text | judged at: judged_at",
    wide="rows from: start | rows until: end",
    texts="what",
)
