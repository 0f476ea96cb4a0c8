"""Converts the registry's records to the JSON of MLflow's protocol, and filters, orders and pages its searches."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from toque.registry import Experiment, InvalidInput, ModelState, ModelVersion, RunRecord
from toque.registry.models.decisions import LONGEST_DESCRIPTION
from toque.registry.runs.record import DELETED
from toque.registry.runs.search import AnyOf, Comparable, Predicate, parse_column, parse_where

RESERVED = "toque.mlflow."  # prefix of tags that hold fields of MLflow which the registry does not have
INPUTS, OUTPUTS = f"{RESERVED}inputs", f"{RESERVED}outputs"
SOURCE, MODEL_ID, RUN_LINK = f"{RESERVED}source", f"{RESERVED}model_id", f"{RESERVED}run_link"
DEFAULT_ID, DEFAULT_TITLE = "0", "Default"

Json = dict[str, Any]
Description = Annotated[str, Field(max_length=LONGEST_DESCRIPTION)]
MAX_KEY_CHARS, MAX_VALUE_CHARS = 250, 8_000
"""Bounds of a tag, as MLflow's own server has them for runs: tags stay in the memory of all who follow a model."""
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
T = TypeVar("T")
Attributes = Mapping[str, Callable[[Any], Any]]


class Body(BaseModel):
    """Base of request bodies; fields that clients of other versions add are ignored."""

    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)


class Tag(Body):
    """Key and value, as MLflow sends tags and parameters."""

    key: str = Field(min_length=1, max_length=MAX_KEY_CHARS)
    value: str = Field(default="", max_length=MAX_VALUE_CHARS)


def pairs(tags: Iterable[Tag]) -> dict[str, str]:
    """Convert a list of tags to a mapping. Raises: InvalidInput for a reserved tag."""
    found = {tag.key: tag.value for tag in tags}
    for key in found:
        check_tag(key)
    return found


def check_tag(key: str) -> str:
    """Return `key` if clients may write that tag. Raises: InvalidInput."""
    if key.startswith(RESERVED):
        raise InvalidInput(f"tag {key!r}: tags that begin with {RESERVED!r} are the platform's own")
    return key


def tags_of(tags: Mapping[str, str]) -> list[Json]:
    """Convert tags to MLflow's list, without reserved ones."""
    return [{"key": key, "value": value} for key, value in tags.items() if not key.startswith(RESERVED)]


def to_ms(at: datetime) -> int:
    """Convert a time to milliseconds since 1970."""
    return round(at.timestamp() * 1000)


def from_ms(at_ms: int | None) -> datetime | None:
    """Convert milliseconds since 1970 to a time; None and 0 mean no time. Raises: InvalidInput if out of range."""
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC) if at_ms else None
    except (OverflowError, ValueError, OSError) as error:
        raise InvalidInput(f"time {at_ms} is not milliseconds since 1970: {error}") from error


def number(value: float) -> float | str:
    """Convert a number to JSON; NaN and infinities become text, as protobuf writes them."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def stage(*, deleted: bool) -> str:
    """Name MLflow's lifecycle stage: active or deleted."""
    return "deleted" if deleted else "active"


def experiment(each: Experiment) -> Json:
    """Convert an experiment to MLflow's JSON."""
    return {
        "experiment_id": each.name,
        "name": each.title,
        "artifact_location": f"mlflow-artifacts:/experiments/{each.name}",
        "lifecycle_stage": stage(deleted=each.deleted),
        "creation_time": to_ms(each.created_at),
        "last_update_time": to_ms(each.changed_at),
        "tags": tags_of(each.tags),
    }


def artifact_root(run_id: str) -> str:
    """Make the address of the artifacts of a run or a logged model."""
    return f"mlflow-artifacts:/runs/{run_id}"


def run_info(record: RunRecord) -> Json:
    """Convert a run's description to MLflow's JSON; status LOST becomes KILLED, as MLflow has no other word for it."""
    info: Json = {
        "run_id": record.id,
        "run_uuid": record.id,
        "run_name": record.name,
        "experiment_id": record.experiment,
        "user_id": record.actor,
        "status": "KILLED" if record.status == "LOST" else record.status,
        "start_time": to_ms(record.started_at),
        "artifact_uri": artifact_root(record.id),
        "lifecycle_stage": stage(deleted=DELETED in record.tags),
    }
    return info if record.ended_at is None else info | {"end_time": to_ms(record.ended_at)}


def run(record: RunRecord) -> Json:
    """Convert a run with what it logged; last metric values lack step and time, which the history has."""
    return {
        "info": run_info(record),
        "data": {
            "params": [{"key": key, "value": value} for key, value in record.params.items()],
            "metrics": [{"key": key, "value": number(value)} for key, value in record.metrics.items()],
            "tags": tags_of(record.tags),
        },
        "inputs": {"dataset_inputs": list_in_tag(record, INPUTS)},
        "outputs": {"model_outputs": list_in_tag(record, OUTPUTS)},
    }


def list_in_tag(record: RunRecord, tag: str) -> list[Json]:
    """Parse the list that a reserved tag holds."""
    found: list[Json] = json.loads(record.tags.get(tag, "[]"))
    return found


def version(state: ModelState, each: ModelVersion) -> Json:
    """Convert a model version, whose status is always READY as incomplete ones are never visible."""
    return {
        "name": each.model,
        "version": str(each.version),
        "creation_timestamp": to_ms(each.created_at),
        "last_updated_timestamp": to_ms(each.created_at),
        "user_id": each.author,
        "current_stage": "None",
        "description": each.description,
        "source": each.tags.get(SOURCE, version_root(each)),
        "run_id": each.lineage.run or "",
        "run_link": each.tags.get(RUN_LINK, ""),
        "model_id": each.tags.get(MODEL_ID, ""),
        "status": "READY",
        "tags": tags_of(each.tags),
        "aliases": [alias for alias, target in state.aliases.items() if target == each.version],
        "model_metrics": [{"key": key, "value": number(value)} for key, value in each.metrics.items()],
    }


def version_root(each: ModelVersion) -> str:
    """Make the address of the files of a version."""
    return f"mlflow-artifacts:/models/{each.model}/{each.version}"


def model(state: ModelState) -> Json:
    """Convert a registered model with its newest version."""
    assert state.created_at is not None  # noqa: S101 - every model that get_model returns has it
    living = [each for each in state.versions.values() if each.deleted_at is None]
    newest = max((each.created_at for each in living), default=state.created_at)
    return {
        "name": state.name,
        "creation_timestamp": to_ms(state.created_at),
        "last_updated_timestamp": to_ms(newest),
        "description": state.description,
        "tags": tags_of(state.tags),
        "aliases": [{"alias": alias, "version": str(target)} for alias, target in state.aliases.items()],
        "latest_versions": [version(state, living[-1])] if living else [],
    }


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
