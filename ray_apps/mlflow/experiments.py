"""Routes of experiments by MLflow's protocol.

MLflow's experiment id is the registry's name, its name the registry's title. A title that is not a valid name gets
an id made of its letters and its digest. Experiment 0, MLflow's default, exists without being created.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from toque.ray_apps.admission import GuardedRoute
from toque.ray_apps.mlflow import wire
from toque.ray_apps.mlflow.services import OperatorRegistry, Refusal, ViewerRegistry
from toque.ray_apps.mlflow.wire import Body, Json, Tag, page, parse_filter, sort_by
from toque.registry import AlreadyExists, Experiment, NotFound, Registry

router = APIRouter(prefix="/2.0/mlflow/experiments", route_class=GuardedRoute)
LOGGED_MODELS = "logged-models"  # the experiment whose runs are MLflow's logged models

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")  # the ids that MLflow's client accepts
_SLUG = 40
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ATTRIBUTES = {
    "name": lambda each: each.title,
    "experiment_id": lambda each: each.name,
    "creation_time": lambda each: wire.to_ms(each.created_at),
    "last_update_time": lambda each: wire.to_ms(each.changed_at),
}


class CreateExperiment(Body):
    """An experiment to create, with its tags."""

    name: str = Field(min_length=1, max_length=500)
    tags: Sequence[Tag] = ()


class ExperimentId(Body):
    """Body that names an experiment by id."""

    experiment_id: str


class RenameExperiment(ExperimentId):
    """Body that gives an experiment a new name."""

    new_name: str = Field(min_length=1, max_length=500)


class ExperimentTag(ExperimentId):
    """Body that names a tag of an experiment."""

    key: str = Field(min_length=1)
    value: str = ""


class ExperimentSearch(Body):
    """Filter, order and page of a search for experiments."""

    filter: str = ""
    order_by: Sequence[str] = ()
    max_results: int = 1000
    page_token: str = ""
    view_type: str = "ACTIVE_ONLY"


def get_experiment(registry: Registry, experiment_id: str) -> Experiment:
    """Get an experiment by id, 0 also before it is used. Raises: NotFound."""
    try:
        found = registry.get_experiment(experiment_id)
    except NotFound:
        if experiment_id != wire.DEFAULT_ID:
            raise
        found = Experiment(experiment_id, experiment_id, _EPOCH, _EPOCH)
    return _with_title(found)


def active_experiment(registry: Registry, experiment_id: str) -> str:
    """Get the name of an experiment in which runs may be started. Raises: NotFound; Refusal if it was deleted."""
    found = get_experiment(registry, experiment_id)
    if found.deleted:
        raise Refusal("INVALID_PARAMETER_VALUE", f"experiment {found.title!r} is deleted; restore it first")
    return found.name


@router.post("/create")
def create(body: CreateExperiment, registry: OperatorRegistry) -> Json:
    """Create an experiment; responds with its id."""
    known = registry.find_experiment(body.name)
    if known is not None or body.name in {LOGGED_MODELS, wire.DEFAULT_TITLE, wire.DEFAULT_ID}:
        is_deleted = known is not None and known.deleted
        raise AlreadyExists(
            f"experiment {body.name!r} exists already{', deleted: restore it' if is_deleted else ''}"
        )
    made = registry.create_experiment(id_of_title(body.name), title=body.name, tags=wire.pairs(body.tags))
    return {"experiment_id": made.name}


@router.get("/get")
def get(experiment_id: str, registry: ViewerRegistry) -> Json:
    """Get one experiment by its id."""
    return {"experiment": wire.experiment(get_experiment(registry, experiment_id))}


@router.get("/get-by-name")
def get_by_name(experiment_name: str, registry: ViewerRegistry) -> Json:
    """Get one experiment by its name."""
    if experiment_name == wire.DEFAULT_TITLE:
        return {"experiment": wire.experiment(get_experiment(registry, wire.DEFAULT_ID))}
    found = registry.find_experiment(experiment_name)
    if found is None:
        raise NotFound(f"experiment {experiment_name!r} does not exist")
    return {"experiment": wire.experiment(_with_title(found))}


@router.post("/search")
def search(body: ExperimentSearch, registry: ViewerRegistry) -> Json:
    """Search for experiments that match a filter."""
    every = [_with_title(each) for each in registry.all_experiments() if each.name != LOGGED_MODELS]
    if all(each.name != wire.DEFAULT_ID for each in every):
        every.append(get_experiment(registry, wire.DEFAULT_ID))
    matches = parse_filter(body.filter, _ATTRIBUTES)
    matching = [each for each in every if matches(each) and is_in_view(body.view_type, deleted=each.deleted)]
    order = body.order_by or ["creation_time DESC"]
    found, more = page(sort_by(matching, order, _ATTRIBUTES), size=body.max_results, token=body.page_token)
    return {"experiments": [wire.experiment(each) for each in found], **more}


@router.get("/search")
def search_by_query(registry: ViewerRegistry, query: Annotated[ExperimentSearch, Query()]) -> Json:
    """Search for experiments by parameters in the query string."""
    return search(query, registry)


@router.post("/update")
def update(body: RenameExperiment, registry: OperatorRegistry) -> Json:
    """Rename an experiment; its id stays."""
    registry.change_experiment(_created(registry, body.experiment_id), title=body.new_name)
    return {}


@router.post("/delete")
def delete(body: ExperimentId, registry: OperatorRegistry) -> Json:
    """Hide an experiment from searches; its runs stay."""
    registry.change_experiment(_created(registry, body.experiment_id), deleted=True)
    return {}


@router.post("/restore")
def restore(body: ExperimentId, registry: OperatorRegistry) -> Json:
    """Restore an experiment that was deleted."""
    registry.change_experiment(_created(registry, body.experiment_id), deleted=False)
    return {}


@router.post("/set-experiment-tag")
def set_tag(body: ExperimentTag, registry: OperatorRegistry) -> Json:
    """Add or replace a tag of an experiment."""
    key = wire.check_tag(body.key)
    registry.change_experiment(_created(registry, body.experiment_id), tags={key: body.value})
    return {}


@router.post("/delete-experiment-tag")
def delete_tag(body: ExperimentTag, registry: OperatorRegistry) -> Json:
    """Remove a tag from an experiment."""
    key = wire.check_tag(body.key)
    registry.change_experiment(_created(registry, body.experiment_id), tags={key: None})
    return {}


def is_in_view(view: str, *, deleted: bool) -> bool:
    """Whether MLflow's view type includes deleted items, or others."""
    return view == "ALL" or deleted == (view == "DELETED_ONLY")


def id_of_title(title: str) -> str:
    """Make the id of an experiment with that title: the title itself if it is a valid id."""
    if _ID.match(title):
        return title
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", title).strip("-_")[:_SLUG]
    return f"{slug or 'experiment'}-{hashlib.sha256(title.encode()).hexdigest()[:8]}"


def _created(registry: Registry, experiment_id: str) -> str:
    """Id of an experiment that is about to change; 0 is created, as it is there for readers before that."""
    try:
        registry.get_experiment(experiment_id)
    except NotFound:
        if experiment_id != wire.DEFAULT_ID:
            raise
        with suppress(AlreadyExists):  # of several at once one creates it
            registry.create_experiment(wire.DEFAULT_ID)
    return experiment_id


def _with_title(each: Experiment) -> Experiment:
    """Title experiment 0 Default, unless it was given a name."""
    if each.name != wire.DEFAULT_ID or each.title != wire.DEFAULT_ID:
        return each
    return Experiment(
        each.name, wire.DEFAULT_TITLE, each.created_at, each.changed_at, each.tags, each.deleted
    )
