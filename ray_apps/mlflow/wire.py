"""The registry's records in the words of MLflow's protocol."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from registry import Experiment, InvalidInput, ModelState, ModelVersion, RunRecord

RESERVED = "toque.mlflow."  # tags that hold what MLflow says of a run and the registry has no field for
DELETED = f"{RESERVED}deleted"
INPUTS, OUTPUTS = f"{RESERVED}inputs", f"{RESERVED}outputs"
SOURCE, MODEL_ID, RUN_LINK = f"{RESERVED}source", f"{RESERVED}model_id", f"{RESERVED}run_link"
DEFAULT_ID, DEFAULT_TITLE = "0", "Default"

Json = dict[str, Any]


class Body(BaseModel):
    """A request's body: what a client of another version adds is left aside."""

    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)


class Tag(Body):
    """A key and its value, as MLflow sends tags and parameters."""

    key: str = Field(min_length=1)
    value: str = ""


def pairs(tags: Iterable[Tag]) -> dict[str, str]:
    """Tags as a mapping. Raises: InvalidInput for one that is reserved."""
    found = {tag.key: tag.value for tag in tags}
    for key in found:
        check_tag(key)
    return found


def check_tag(key: str) -> str:
    """`key` if a client may write it. Raises: InvalidInput."""
    if key.startswith(RESERVED):
        raise InvalidInput(f"tag {key!r}: tags that begin with {RESERVED!r} are the platform's own")
    return key


def tags_of(tags: Mapping[str, str]) -> list[Json]:
    """Tags as MLflow lists them, without those that are reserved."""
    return [{"key": key, "value": value} for key, value in tags.items() if not key.startswith(RESERVED)]


def to_ms(at: datetime) -> int:
    """Milliseconds since 1970."""
    return round(at.timestamp() * 1000)


def from_ms(at_ms: int | None) -> datetime | None:
    """The inverse of `to_ms`; None and 0 are no time. Raises: InvalidInput for one no calendar has."""
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC) if at_ms else None
    except (OverflowError, ValueError, OSError) as error:
        raise InvalidInput(f"time {at_ms} is not milliseconds since 1970: {error}") from error


def number(value: float) -> float | str:
    """A number as JSON has it; NaN and infinities as protobuf's text."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def stage(*, deleted: bool) -> str:
    """MLflow's lifecycle stage."""
    return "deleted" if deleted else "active"


def experiment(each: Experiment) -> Json:
    """An experiment."""
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
    """Where the artifacts of a run, or of a logged model, are read and written."""
    return f"mlflow-artifacts:/runs/{run_id}"


def run_info(record: RunRecord) -> Json:
    """What a run is. A run lost without a word was killed, in MLflow's words."""
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
    """A run with what it logged. Last values come without step and time: the metric's history has them."""
    return {
        "info": run_info(record),
        "data": {
            "params": [{"key": key, "value": value} for key, value in record.params.items()],
            "metrics": [{"key": key, "value": number(value)} for key, value in record.metrics.items()],
            "tags": tags_of(record.tags),
        },
        "inputs": {"dataset_inputs": noted(record, INPUTS)},
        "outputs": {"model_outputs": noted(record, OUTPUTS)},
    }


def noted(record: RunRecord, tag: str) -> list[Json]:
    """A list that is kept in a reserved tag."""
    found: list[Json] = json.loads(record.tags.get(tag, "[]"))
    return found


def version(state: ModelState, each: ModelVersion) -> Json:
    """A model version: READY, or it would not be there."""
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
    """Where the files of a version are read."""
    return f"mlflow-artifacts:/models/{each.model}/{each.version}"


def model(state: ModelState) -> Json:
    """A registered model with its newest version."""
    assert state.created_at is not None  # noqa: S101 - get_model gives none without
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
