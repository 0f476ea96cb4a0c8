"""Experiments by MLflow's protocol.

MLflow's experiment id is the registry's name, its name the registry's title. A title that is no name itself gets
one made of its letters and its digest. Experiment 0, MLflow's default, needs no creation.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from ray_apps.mlflow import wire
from ray_apps.mlflow.errors import Refusal
from ray_apps.mlflow.search import holds, ordered, page
from ray_apps.mlflow.services import Reader, Writer
from ray_apps.mlflow.wire import Body, Json, Tag
from registry import AlreadyExists, Experiment, NotFound, Registry

router = APIRouter(prefix="/2.0/mlflow/experiments")
LOGGED_MODELS = "logged-models"  # the experiment whose runs are MLflow's logged models

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")  # what MLflow takes for one
_SLUG = 40
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ATTRIBUTES = {
    "name": lambda each: each.title,
    "experiment_id": lambda each: each.name,
    "creation_time": lambda each: wire.to_ms(each.created_at),
    "last_update_time": lambda each: wire.to_ms(each.changed_at),
}


class Create(Body):
    """A new experiment."""

    name: str = Field(min_length=1, max_length=500)
    tags: Sequence[Tag] = ()


class Which(Body):
    """An experiment."""

    experiment_id: str


class Update(Which):
    """A new name."""

    new_name: str = Field(min_length=1, max_length=500)


class TagOf(Which):
    """A tag of an experiment."""

    key: str = Field(min_length=1)
    value: str = ""


class Search(Body):
    """A search over experiments."""

    filter: str = ""
    order_by: Sequence[str] = ()
    max_results: int = 1000
    page_token: str = ""
    view_type: str = "ACTIVE_ONLY"


def find(registry: Registry, experiment_id: str) -> Experiment:
    """The experiment of that id. Raises: NotFound."""
    try:
        found = registry.get_experiment(experiment_id)
    except NotFound:
        if experiment_id != wire.DEFAULT_ID:
            raise
        found = Experiment(experiment_id, experiment_id, _EPOCH, _EPOCH)
    return _titled(found)


def usable(registry: Registry, experiment_id: str) -> str:
    """The experiment's name, if runs may be started in it. Raises: NotFound; Refusal if it was deleted."""
    found = find(registry, experiment_id)
    if found.deleted:
        raise Refusal("INVALID_PARAMETER_VALUE", f"experiment {found.title!r} is deleted; restore it first")
    return found.name


@router.post("/create")
def create(body: Create, registry: Writer) -> Json:
    """Create an experiment; answers its id."""
    known = registry.find_experiment(body.name)
    if known is not None or body.name in {LOGGED_MODELS, wire.DEFAULT_TITLE, wire.DEFAULT_ID}:
        put_away = known is not None and known.deleted
        raise AlreadyExists(
            f"experiment {body.name!r} exists already{', deleted: restore it' if put_away else ''}"
        )
    made = registry.create_experiment(id_for(body.name), title=body.name, tags=wire.pairs(body.tags))
    return {"experiment_id": made.name}


@router.get("/get")
def get(experiment_id: str, registry: Reader) -> Json:
    """One experiment by id."""
    return {"experiment": wire.experiment(find(registry, experiment_id))}


@router.get("/get-by-name")
def get_by_name(experiment_name: str, registry: Reader) -> Json:
    """One experiment by name."""
    if experiment_name == wire.DEFAULT_TITLE:
        return {"experiment": wire.experiment(find(registry, wire.DEFAULT_ID))}
    found = registry.find_experiment(experiment_name)
    if found is None:
        raise NotFound(f"experiment {experiment_name!r} does not exist")
    return {"experiment": wire.experiment(_titled(found))}


@router.post("/search")
def search(body: Search, registry: Reader) -> Json:
    """Experiments that a filter holds for."""
    every = [_titled(each) for each in registry.all_experiments() if each.name != LOGGED_MODELS]
    if all(each.name != wire.DEFAULT_ID for each in every):
        every.append(find(registry, wire.DEFAULT_ID))
    is_it = holds(body.filter, _ATTRIBUTES)
    seen = [each for each in every if is_it(each) and in_view(body.view_type, deleted=each.deleted)]
    order = body.order_by or ["creation_time DESC"]
    found, more = page(ordered(seen, order, _ATTRIBUTES), size=body.max_results, token=body.page_token)
    return {"experiments": [wire.experiment(each) for each in found], **more}


@router.get("/search")
def search_by_query(registry: Reader, asked: Annotated[Search, Query()]) -> Json:
    """The same, asked in the address."""
    return search(asked, registry)


@router.post("/update")
def update(body: Update, registry: Writer) -> Json:
    """Rename an experiment."""
    registry.change_experiment(body.experiment_id, title=body.new_name)
    return {}


@router.post("/delete")
def delete(body: Which, registry: Writer) -> Json:
    """Put an experiment away; its runs stay."""
    registry.change_experiment(body.experiment_id, deleted=True)
    return {}


@router.post("/restore")
def restore(body: Which, registry: Writer) -> Json:
    """Bring an experiment back."""
    registry.change_experiment(body.experiment_id, deleted=False)
    return {}


@router.post("/set-experiment-tag")
def set_tag(body: TagOf, registry: Writer) -> Json:
    """Add or replace a tag."""
    registry.change_experiment(body.experiment_id, tags={wire.check_tag(body.key): body.value})
    return {}


@router.post("/delete-experiment-tag")
def delete_tag(body: TagOf, registry: Writer) -> Json:
    """Take a tag away."""
    registry.change_experiment(body.experiment_id, tags={wire.check_tag(body.key): None})
    return {}


def in_view(view: str, *, deleted: bool) -> bool:
    """Whether MLflow's view type shows something."""
    return view == "ALL" or deleted == (view == "DELETED_ONLY")


def id_for(title: str) -> str:
    """The id of an experiment of that title: itself if it can be one."""
    if _ID.match(title):
        return title
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", title).strip("-_")[:_SLUG]
    return f"{slug or 'experiment'}-{hashlib.sha256(title.encode()).hexdigest()[:8]}"


def _titled(each: Experiment) -> Experiment:
    """Experiment 0 is called Default, unless it was given a name."""
    if each.name != wire.DEFAULT_ID or each.title != wire.DEFAULT_ID:
        return each
    return Experiment(
        each.name, wire.DEFAULT_TITLE, each.created_at, each.changed_at, each.tags, each.deleted
    )
