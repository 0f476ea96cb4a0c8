"""Registered models and their aliases by MLflow's protocol.

The registry's rules hold at this door as at any other: a guarded alias takes approved versions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from ray_apps.mlflow import wire
from ray_apps.mlflow.errors import unsupported
from ray_apps.mlflow.search import holds, ordered, page
from ray_apps.mlflow.services import Reader, Writer
from ray_apps.mlflow.wire import Body, Json, Tag
from registry import InvalidInput, NotFound

router = APIRouter(prefix="/2.0/mlflow/registered-models")

_ATTRIBUTES = {
    "name": lambda state: state.name,
    "creation_timestamp": lambda state: wire.to_ms(state.created_at),
    "last_updated_timestamp": lambda state: wire.model(state)["last_updated_timestamp"],
    "timestamp": lambda state: wire.model(state)["last_updated_timestamp"],
}


class Which(Body):
    """A model."""

    name: str = Field(min_length=1)


class Create(Which):
    """A new model."""

    description: str = ""
    tags: Sequence[Tag] = ()


class Update(Which):
    """A new description."""

    description: str = ""


class TagOf(Which, Tag):
    """A tag of a model."""


class Alias(Which):
    """An alias of a model."""

    alias: str


class Pointing(Alias):
    """Where an alias shall point."""

    version: str


class Search(Body):
    """A search over models or versions."""

    filter: str = ""
    max_results: int = 1000
    order_by: Sequence[str] = ()
    page_token: str = ""


Asked = Annotated[Search, Query()]


@router.post("/create")
def create(body: Create, registry: Writer) -> Json:
    """Create a model."""
    state = registry.create_model(body.name, description=body.description, tags=wire.pairs(body.tags))
    return {"registered_model": wire.model(state)}


@router.get("/get")
def get(name: str, registry: Reader) -> Json:
    """One model."""
    return {"registered_model": wire.model(registry.get_model(name))}


@router.get("/search")
def search(asked: Asked, registry: Reader) -> Json:
    """Models that a filter holds for."""
    is_it = holds(asked.filter, _ATTRIBUTES)
    seen = [state for state in map(registry.get_model, registry.list_models()) if is_it(state)]
    found, more = page(
        ordered(seen, asked.order_by or ["name"], _ATTRIBUTES), size=asked.max_results, token=asked.page_token
    )
    return {"registered_models": [wire.model(state) for state in found], **more}


@router.patch("/update")
def update(body: Update, registry: Writer) -> Json:
    """Describe a model anew."""
    return {
        "registered_model": wire.model(registry.set_model_tags(body.name, {}, description=body.description))
    }


@router.post("/set-tag")
def set_tag(body: TagOf, registry: Writer) -> Json:
    """Add or replace a tag."""
    registry.set_model_tags(body.name, {wire.check_tag(body.key): body.value})
    return {}


@router.delete("/delete-tag")
def delete_tag(body: TagOf, registry: Writer) -> Json:
    """Take a tag away."""
    registry.set_model_tags(body.name, {wire.check_tag(body.key): None})
    return {}


@router.post("/alias")
def set_alias(body: Pointing, registry: Writer) -> Json:
    """Point an alias to a version, if the model's policy allows it."""
    registry.set_alias(body.name, body.alias, number_of(body.version), reason="by MLflow's protocol")
    return {}


@router.delete("/alias")
def delete_alias(body: Alias, registry: Writer) -> Json:
    """Take an alias away."""
    registry.delete_alias(body.name, body.alias, reason="by MLflow's protocol")
    return {}


@router.get("/alias")
def get_by_alias(name: str, alias: str, registry: Reader) -> Json:
    """The version behind an alias."""
    found = registry.find_version(name, alias)
    if found is None:
        raise NotFound(
            f"Registered model alias {alias} not found: {name} has {dict(registry.get_model(name).aliases)}"
        )
    return {"model_version": wire.version(registry.get_model(name), found)}


@router.post("/get-latest-versions")
def latest(body: Which, registry: Reader) -> Json:
    """The newest version; there are no stages."""
    return {"model_versions": wire.model(registry.get_model(body.name))["latest_versions"]}


@router.get("/get-latest-versions")
def latest_by_query(name: str, registry: Reader) -> Json:
    """The same, asked in the address."""
    return latest(Which(name=name), registry)


@router.post("/rename")
def rename(body: Which, _: Writer) -> Json:
    """Refused: a name is what history and lineage go by."""
    raise unsupported(f"renaming model {body.name!r}", "create a model of the other name")


@router.delete("/delete")
def delete(body: Which, _: Writer) -> Json:
    """Refused: its history is kept."""
    raise unsupported(f"deleting model {body.name!r}", "its history is kept; delete its versions")


def number_of(text: str) -> int:
    """A version's number. Raises: InvalidInput."""
    if not text.isascii() or not text.isdecimal():
        raise InvalidInput(f"version={text!r} is not a number")
    return int(text)
