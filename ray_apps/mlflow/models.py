"""Routes of registered models and their aliases by MLflow's protocol.

The registry's rules apply here as in every other API: a guarded alias takes approved versions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from toque.ray_apps.admission import GuardedRoute
from toque.ray_apps.mlflow import wire
from toque.ray_apps.mlflow.services import ModelOperator, ModelViewer, unsupported
from toque.ray_apps.mlflow.wire import IS_PROMPT, Body, Description, Json, Tag, page, parse_filter, sort_by
from toque.registry import InvalidInput, NotFound

router = APIRouter(prefix="/2.0/mlflow/registered-models", route_class=GuardedRoute)

_ATTRIBUTES = {
    "name": lambda state: state.name,
    "creation_timestamp": lambda state: wire.to_ms(state.created_at),
    "last_updated_timestamp": lambda state: wire.model(state)["last_updated_timestamp"],
    "timestamp": lambda state: wire.model(state)["last_updated_timestamp"],
}


class ModelName(Body):
    """Body that names a registered model."""

    name: str = Field(min_length=1)


class CreateModel(ModelName):
    """A registered model to create, with its tags."""

    description: Description = ""
    tags: Sequence[Tag] = ()


class DescribeModel(ModelName):
    """Body that gives a model a new description."""

    description: Description = ""


class ModelTag(ModelName, Tag):
    """Body that names a tag of a model."""


class ModelAlias(ModelName):
    """Body that names an alias of a model."""

    alias: str


class AliasTarget(ModelAlias):
    """Body that names an alias and its version."""

    version: str


class ModelSearch(Body):
    """Filter, order and page of a search for models or versions."""

    filter: str = ""
    max_results: int = 1000
    order_by: Sequence[str] = ()
    page_token: str = ""


SearchQuery = Annotated[ModelSearch, Query()]


@router.post("/create")
def create(body: CreateModel, models: ModelOperator) -> Json:
    """Create a registered model without versions; of a prompt none is made, as its versions are no files."""
    if wire.pairs(body.tags).get(IS_PROMPT, "").lower() == "true":
        raise unsupported(
            "registering prompts",
            f"keep {body.name!r} as a version of a language model, which has its prompt in it",
        )
    state = models.to(body.name).create_model(
        body.name, description=body.description, tags=wire.pairs(body.tags)
    )
    return {"registered_model": wire.model(state)}


@router.get("/get")
def get(name: str, models: ModelViewer) -> Json:
    """Get one registered model by name."""
    return {"registered_model": wire.model(models.to(name).get_model(name))}


@router.get("/search")
def search(query: SearchQuery, models: ModelViewer) -> Json:
    """Search for models that match a filter."""
    matches = parse_filter(query.filter, _ATTRIBUTES)
    every = (models.to(name).get_model(name) for name in models.models())
    matching = [state for state in every if matches(state)]
    found, more = page(
        sort_by(matching, query.order_by or ["name"], _ATTRIBUTES),
        size=query.max_results,
        token=query.page_token,
    )
    return {"registered_models": [wire.model(state) for state in found], **more}


@router.patch("/update")
def update(body: DescribeModel, models: ModelOperator) -> Json:
    """Replace the description of a model."""
    return {
        "registered_model": wire.model(
            models.to(body.name).set_model_tags(body.name, {}, description=body.description)
        )
    }


@router.post("/set-tag")
def set_tag(body: ModelTag, models: ModelOperator) -> Json:
    """Add or replace a tag of a model."""
    models.to(body.name).set_model_tags(body.name, {wire.check_tag(body.key): body.value})
    return {}


@router.delete("/delete-tag")
def delete_tag(body: ModelTag, models: ModelOperator) -> Json:
    """Remove a tag from a model."""
    models.to(body.name).set_model_tags(body.name, {wire.check_tag(body.key): None})
    return {}


@router.post("/alias")
def set_alias(body: AliasTarget, models: ModelOperator) -> Json:
    """Point an alias to a version, if the model's policy allows it."""
    models.to(body.name).set_alias(
        body.name, body.alias, version_number(body.version), reason="by MLflow's protocol"
    )
    return {}


@router.delete("/alias")
def delete_alias(body: ModelAlias, models: ModelOperator) -> Json:
    """Remove an alias from a model."""
    models.to(body.name).delete_alias(body.name, body.alias, reason="by MLflow's protocol")
    return {}


@router.get("/alias")
def get_by_alias(name: str, alias: str, models: ModelViewer) -> Json:
    """Get the version that an alias points to."""
    registry = models.to(name)
    found = registry.find_version(name, alias)
    if found is None:
        raise NotFound(
            f"Registered model alias {alias} not found: {name} has {dict(registry.get_model(name).aliases)}"
        )
    return {"model_version": wire.version(registry.get_model(name), found)}


@router.post("/get-latest-versions")
def latest(body: ModelName, models: ModelViewer) -> Json:
    """Get the newest version of a model, as there are no stages."""
    return {"model_versions": wire.model(models.to(body.name).get_model(body.name))["latest_versions"]}


@router.get("/get-latest-versions")
def latest_by_query(name: str, models: ModelViewer) -> Json:
    """Get the newest version of the model in the query string."""
    return latest(ModelName(name=name), models)


@router.post("/rename")
def rename(body: ModelName, models: ModelOperator) -> Json:
    """Refuse to rename a model, as history and lineage refer to its name."""
    models.to(body.name)
    raise unsupported(f"renaming model {body.name!r}", "create a model of the other name")


@router.delete("/delete")
def delete(body: ModelName, models: ModelOperator) -> Json:
    """Delete a model that never had a version, as a refused registration leaves one; the history of others is kept."""
    registry = models.to(body.name)
    if registry.get_model(body.name).versions:
        raise unsupported(f"deleting model {body.name!r}", "its history is kept; delete its versions")
    registry.delete_model(body.name, reason="by MLflow's protocol")
    return {}


def version_number(text: str) -> int:
    """Parse the number of a version. Raises: InvalidInput."""
    if not text.isascii() or not text.isdecimal():
        raise InvalidInput(f"version={text!r} is not a number")
    return int(text)
