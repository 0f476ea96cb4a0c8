"""`toque vectors` and `toque search`: indexes of vectors, and the rows that are nearest to a text, a key or a vector."""

from __future__ import annotations

from typing import Any

from toque.ray_apps.cli.arguments import arg, flag, limit, read_json
from toque.ray_apps.cli.client import call
from toque.ray_apps.cli.command import Commands, Given, add
from toque.ray_apps.cli.errors import UsageError
from toque.ray_apps.cli.output import chosen, columns, listing, table

_VIEW = arg("view", "name of the feature view, as `toque features` shows it")
_FIELD = arg("--field NAME", "vector field to search (default: the view's only one)")
_TEXT = arg("--text TEXT", "find what is nearest to a text, by the index's text model")
_KEY = arg("--key JSON", 'find what is nearest to a stored row, by its key such as \'{"doc": "a"}\'')
_VECTOR = arg("--vector JSON", "find what is nearest to a vector, such as '[0.1, 0.2]'")
_WHERE = arg("--where JSON", 'conditions on other columns, such as \'{"lang": "de", "year": {"ge": 2020}}\'')
_AT = arg("--at TIME", "what would have been found at this time, ISO 8601 with its offset")
_EXACT = flag("--exact", "compare every row, even where there is an index")
_REFRESH = flag("--refresh", "bring the indexes up to date first")
_MOST = 1_000


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    names = arg("names VIEW", "name of a view (default: all that declare an index)", nargs="*")
    add(commands, "vectors", _vectors, names, _REFRESH, limit(None))
    add(commands, "search", _search, _VIEW, _TEXT, _KEY, _VECTOR, _FIELD, _WHERE, _AT, _EXACT, limit(10))


def _vectors(given: Given) -> None:
    """Show vector indexes: how good they are, and how many rows they have and lack."""
    function = "refresh_vector_indexes" if given.refresh else "vector_indexes"
    found = call(given.client, function, {"views": given.names or None})
    listing(
        chosen(given.output),
        _INDEXES,
        found,
        empty="no feature view declares a vector index",
        limit=given.limit,
    )


def _search(given: Given) -> None:
    """Find the rows of a feature view whose vectors are nearest to a text, a key or a vector."""
    if given.limit > _MOST:
        raise UsageError(f"--limit {given.limit}: a search finds at most {_MOST}")
    asked: dict[str, Any] = {"text": given.text, "field": given.field, "at": given.at}
    for name in ("key", "vector", "where"):
        text = getattr(given, name)
        asked[name] = None if text is None else read_json(text)
    body = {name: value for name, value in asked.items() if value is not None}
    body |= {"k": given.limit, "exact": given.exact}
    found = given.client.send("POST", f"/features/{given.view}/search", body=body).json()
    table(chosen(given.output), _FOUND, found["found"], whole=found)


def _shown(row: dict[str, Any], part: str) -> str:
    return ", ".join(f"{name}={value}" for name, value in row[part].items())


_INDEXES = columns(
    "view | field | metric | build | rows | behind | recall | built: built_at",
    wide="least recall: least_recall | text model: text_model",
)
_FOUND = columns(
    "key | distance | features | event: event_timestamp",
    texts="key | features",
    values={
        "key": lambda row: _shown(row, "key"),
        "distance": lambda row: f"{row['distance']:.6g}",
        "features": lambda row: _shown(row, "features"),
    },
)
