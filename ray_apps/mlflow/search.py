"""Filters, orders and pages of MLflow's searches for experiments, models and versions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from toque.ray_apps.mlflow.wire import INPUTS, Json, list_in_tag
from toque.registry import InvalidInput
from toque.registry.runs.search import AnyOf, Comparable, Predicate, parse_column, parse_where

T = TypeVar("T")
Attributes = Mapping[str, Callable[[Any], Any]]
IS_PROMPT = (
    "mlflow.prompt.is_prompt"  # clients search for models that are not prompts; there are no prompts here
)
NUMBERS = {
    "version_number",
    "creation_time",
    "last_update_time",
    "creation_timestamp",
    "last_updated_timestamp",
}


_OF_DATASETS = ("name", "digest", "context")
_CONTEXT = "mlflow.data.context"


@dataclass(frozen=True, slots=True)
class _Attribute:
    """Column of a filter or order: an attribute, or a tag."""

    kind: str
    name: str
    of: Callable[[Any], Any]

    @property
    def is_number(self) -> bool:
        """Whether values of the column compare as numbers."""
        return self.kind == "attributes" and self.name in NUMBERS


def parse_filter(where: str, attributes: Attributes) -> Predicate:
    """Parse a filter to a predicate over items with these attributes and `tags`. Raises: InvalidInput."""
    return parse_where(where, lambda name: _column(name, attributes))


def runs_column(name: str) -> Comparable:
    """Resolve a name in a filter of runs: `datasets.name`, `.digest` and `.context`, and what the registry has. Raises: InvalidInput."""
    kind, dot, rest = name.partition(".")
    if not dot or kind.lower() not in {"dataset", "datasets"}:
        return parse_column(name)
    field = rest.strip('`"').lower()
    if field not in _OF_DATASETS:
        raise InvalidInput(f"{name!r}: no such column of data sets; there are {list(_OF_DATASETS)}")
    return _Attribute("datasets", field, lambda run: _of_inputs(list_in_tag(run, INPUTS), field))


def _of_inputs(inputs: Sequence[Json], field: str) -> AnyOf | None:
    """Values of a field of the data sets that a run reads; None without any."""
    if field == "context":
        tags = [tag for each in inputs for tag in each.get("tags") or () if tag.get("key") == _CONTEXT]
        values = [str(tag.get("value", "")) for tag in tags]
    else:
        values = [str((each.get("dataset") or {}).get(field, "")) for each in inputs]
    return AnyOf(values) if values else None


def sort_by(items: list[T], order_by: Sequence[str], attributes: Attributes) -> list[T]:
    """Sort items by columns such as `name DESC`. Raises: InvalidInput for an unknown attribute."""
    for text in reversed(order_by):
        name, _, direction = text.strip().rpartition(" ")
        if direction.upper() not in {"ASC", "DESC"}:
            name, direction = text.strip(), "ASC"
        column = _column(name, attributes)
        items = sorted(items, key=column.of, reverse=direction.upper() == "DESC")
    return items


def page(items: Sequence[T], *, size: int, token: str) -> tuple[Sequence[T], Json]:
    """Cut a page of `items`; returns it and, if more follow, the token of the next page. Raises: InvalidInput."""
    if size < 1:
        raise InvalidInput(f"max_results={size} is below 1")
    if token and not token.isdecimal():
        raise InvalidInput(f"page_token={token!r} was not given by this server")
    start = int(token or 0)
    more = {"next_page_token": str(start + size)} if start + size < len(items) else {}
    return items[start : start + size], more


def _column(name: str, attributes: Attributes) -> _Attribute:
    kind, dot, rest = name.partition(".")
    if dot and kind.lower() in {"tag", "tags"}:
        key = rest[1:-1] if rest[:1] in {"`", '"'} else rest
        absent = "false" if key == IS_PROMPT else None
        return _Attribute("tags", key, lambda item: item.tags.get(key, absent))
    plain = rest if dot and kind.lower() in {"attribute", "attributes", "attr"} else name
    if plain.lower() not in attributes:
        raise InvalidInput(f"{name!r} cannot be searched; there are {sorted(attributes)} and tags.NAME")
    return _Attribute("attributes", plain.lower(), attributes[plain.lower()])
