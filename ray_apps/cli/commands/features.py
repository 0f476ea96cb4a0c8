"""`toque features list`, `catalog`, `sources`, `streams`, `vectors`, `search`: views, the origin of their rows, and indexes."""

from __future__ import annotations

from typing import Any

from toque.ray_apps.cli.arguments import Commands, Given, add, arg, flag, group, limit, read_json
from toque.ray_apps.cli.client import call
from toque.ray_apps.cli.errors import UsageError
from toque.ray_apps.cli.output import Column, chosen, columns, listing, say, table

SAMPLES = 3  # newest rows of a view that are shown
_MOST_FOUND = 1_000
_VIEW_NAMES = arg("views VIEW", "name of a view to show feature by feature (default: list all)", nargs="*")
_SOURCE_NAMES = arg("sources SOURCE", "name of a source to show load by load (default: list all)", nargs="*")
_STREAM_NAMES = arg("streams STREAM", "name of a stream", nargs="+")
_STREAM = arg("streams STREAM", "name of a stream")
_FROM = arg(
    "--from TIME",
    "from messages on that the log took then, in ISO 8601 (default: all that it has)",
    dest="start",
)
_STORED = flag("--stored", "do not read the log: fill the views from the events that are stored")
_HOURS = arg("--hours H", "how much of the newest event time is read (default: 24)", type=float, default=24.0)
_WORDS = arg("words WORD", "words that an entry must have, anywhere in it (default: list all)", nargs="*")
_UNUSED = flag("--unused", "only features that no service and no other view reads")
_SEARCHED = (
    arg("view", "name of the feature view, as `toque features list` shows it"),
    arg("--text TEXT", "find what is nearest to a text, by the index's text model"),
    arg("--key JSON", 'find what is nearest to a stored row, by its key such as \'{"doc": "a"}\''),
    arg("--vector JSON", "find what is nearest to a vector, such as '[0.1, 0.2]'"),
    arg("--field NAME", "vector field to search (default: the view's only one)"),
    arg("--where JSON", 'conditions on other columns, such as \'{"lang": "de", "year": {"ge": 2020}}\''),
    arg("--at TIME", "what would have been found at this time, ISO 8601 with its offset"),
    flag("--exact", "compare every row, even where there is an index"),
)


def register(commands: Commands) -> None:
    """Add the commands on views, sources and streams."""
    views = group(
        commands, "features", "List feature views, search their catalogue and their vector indexes."
    )
    add(views, "list", _features, _VIEW_NAMES, _HOURS, limit(None))
    add(views, "catalog", _catalog, _WORDS, _UNUSED, limit(None))
    add(views, "search", _search, *_SEARCHED, limit(10))
    add(commands, "sources", _sources, _SOURCE_NAMES, limit(None))
    actions = group(commands, "streams", "Show how far streams were read, and replay one.")
    add(actions, "list", _list_streams, limit(None))
    add(actions, "show", _show_streams, _STREAM_NAMES)
    add(actions, "replay", _replay_stream, _STREAM, _FROM, _STORED)


def _features(given: Given) -> None:
    """Show feature views: freshness, fill, coverage and samples."""
    asked = {"views": given.views or None, "span_hours": given.hours, "samples": SAMPLES}
    found = call(given.client, "feature_health", asked)
    how = chosen(given.output)
    if not given.views:
        listing(how, _VIEWS, found, empty="no feature view is applied", limit=given.limit)
    elif how in {"json", "tsv"}:  # one table, so that a program reads one header
        rows = [row for health in found for row in _rows(health)]
        table(how, [Column("view", "view"), *_FEATURE], rows, whole=found)
    else:
        for health in found:
            table(how, _VIEW, [health])
            say("")
            table(how, _FEATURE, _rows(health))


def _sources(given: Given) -> None:
    """Show batch sources: what they read, and what their last loads brought or kept aside."""
    found = call(given.client, "source_status", {"sources": given.sources or None})
    if not given.sources:
        rows = [each | {"last": next(iter(each["loads"]), None)} for each in found]
        listing(chosen(given.output), _SOURCES, rows, empty="no batch source is applied", limit=given.limit)
        return
    loads = [load for each in found for load in each["loads"]]
    table(chosen(given.output), _LOADS, loads, whole=found)


def _catalog(given: Given) -> None:
    """Search the catalogue of features: owners, use, origin, cost, what is deprecated and what nobody uses."""
    found = call(given.client, "feature_catalog", {"words": given.words, "unused": given.unused})
    how = chosen(given.output)
    if len(found) != 1:
        listing(how, _ENTRIES, found, empty="no view has all these words", limit=given.limit)
        return
    table(how, _ENTRIES, found, whole=found)
    if how not in {"json", "tsv"}:
        say("")
        table(how, _CATALOG_FEATURE, found[0]["features"])


def _list_streams(given: Given) -> None:
    """List stream sources: what they read, and how many messages are not stored yet."""
    found = call(given.client, "stream_status", {})
    rows = [each | _whole(each["partitions"]) for each in found]
    listing(chosen(given.output), _STREAMS, rows, empty="no stream source is applied", limit=given.limit)


def _show_streams(given: Given) -> None:
    """Show streams partition by partition: how far each is stored, and how many messages are behind that."""
    found = call(given.client, "stream_status", {"sources": given.streams})
    parts = [each | {"source": one["source"]} for one in found for each in one["partitions"]]
    table(chosen(given.output), _PARTITIONS, parts, whole=found)


def _replay_stream(given: Given) -> None:
    """Read a stream's log again by its definition in force, and fill the views over it anew; each event stays stored once."""
    asked = {"source": given.streams, "start": given.start, "stored": given.stored}
    done = call(given.client, "replay_stream", asked)
    how = chosen(given.output)
    if not given.stored:
        table(how, _REPLAYED, done["partitions"], whole=done)
    if given.stored or how not in {"json", "tsv"}:
        table(how, _FILLED, done["views"], whole=done)


def _whole(partitions: list[dict[str, Any]]) -> dict[str, Any]:
    """Lag of all partitions together, None where one is not known, and the least watermark."""
    lags = [each["lag"] for each in partitions]
    marks = [each["watermark"] for each in partitions if each["watermark"]]
    return {
        "lag": None if None in lags else sum(lags),
        "partitions": len(partitions),
        "watermark": min(marks, default=None),
    }


def _rows(health: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each feature, then for each further column of the newest rows: its fill and what they hold of it."""
    samples = health["samples"]
    names = dict.fromkeys([*health["fill"], *(samples[0] if samples else ())])
    newest = [samples[at] if at < len(samples) else {} for at in range(SAMPLES)]
    return [
        {"view": health["view"], "feature": name, "fill": health["fill"].get(name)}
        | {f"row {number}": row.get(name) for number, row in enumerate(newest, start=1)}
        for name in names
    ]


def _search(given: Given) -> None:
    """Find the rows of a feature view whose vectors are nearest to a text, a key or a vector."""
    if given.limit > _MOST_FOUND:
        raise UsageError(f"--limit {given.limit}: a search finds at most {_MOST_FOUND}")
    asked: dict[str, Any] = {"text": given.text, "field": given.field, "at": given.at}
    for name in ("key", "vector", "where"):
        text = getattr(given, name)
        asked[name] = None if text is None else read_json(text)
    body = {name: value for name, value in asked.items() if value is not None}
    body |= {"k": given.limit, "exact": given.exact}
    found = given.client.send("POST", f"/features/{given.view}/search", body=body).json()
    table(chosen(given.output), _FOUND, found["found"], whole=found)


_VIEWS = columns(
    "view | rows | newest event: newest_event | age: freshness_s as age | ttl: ttl_s as age"
    " | recent rows: recent_rows | keys | fill | online: coverage as {:.1%} | owner",
    wide="files | online until: online_until",
    texts="owner",
    values={"fill": lambda row: f"{min(row['fill'].values()):.1%}" if row["fill"] else None},
)
_VIEW = columns(
    "view | rows | newest event: newest_event | age: freshness_s as age | recent rows: recent_rows | keys"
    " | online: coverage as {:.1%} | files | online until: online_until",
)
_SOURCES = columns(
    "source | reads | views | last load: last.at | rows: last.rows | rejected: last.rejected | owner",
    texts="owner | reads",
)
_STREAMS = columns(
    "source | reads | views | partitions | lag | watermark | unreadable | owner",
    texts="owner | reads | unreadable",
)
_PARTITIONS = columns("source | partition | position | lag | known at: known_at | watermark")
_REPLAYED = columns("partition | first | end | events | rejected")
_FILLED = columns("view | rows | online | removed")
_LOADS = columns(
    "source | load: number | at | rows | known | rejected | reasons: reasons as pairs | unreadable: unreadable as pairs",
    wide="first | last",
)
_ENTRIES = columns(
    "view: name | features: features as {name} | services | models: models as {model}@{version} | rows | bytes"
    " | newest event: newest_event | would break: would_break | owner",
    wide="description | kind",
    texts="owner | description | would break",
)
_CATALOG_FEATURE = columns(
    "feature: name | type: dtype | comes from: comes_from | used by: used_by | deprecated", texts="deprecated"
)
_FEATURE = columns("feature | fill: fill as {:.1%} | row 1 | row 2 | row 3")
_FOUND = columns(
    "key: key as pairs | distance: distance as {:.6g} | features: features as pairs | event: event_timestamp",
    texts="key | features",
)
