"""`toque predict`: ask a model, by tensors or by key."""

from __future__ import annotations

from typing import Any

from ray_apps.cli.arguments import MODEL, arg, flag, read_json, read_pair, repeatable
from ray_apps.cli.command import Commands, Given, add
from ray_apps.cli.errors import UsageError
from ray_apps.cli.output import value

_VERSION = arg("--version N", "ask this version, whatever the traffic policy says", type=int)
_REQUEST = arg("--json JSON", "a whole inference request (Open Inference Protocol), @file or -")
_ENTITIES = arg("--entities JSON", 'join keys of each row, as in \'[{"airport": "JFK"}]\', @file or -')
_VALUES = arg(
    "--request JSON", "values known only at request time, a row for each of the entities, @file or -"
)
_UNIT = arg("--unit", "user or thing that the traffic policy keeps on one arm")
_ATTRIBUTE = repeatable("--attribute NAME=VALUE", "an attribute that the policy's rules look at")
_EXPLAIN = flag("--explain", "say what each feature added to the answer")
_ID = arg("--id", "prediction ID (default: a fresh one)")
_ARGUMENTS = (MODEL, _VERSION, _REQUEST, _ENTITIES, _VALUES, _UNIT, _ATTRIBUTE, _EXPLAIN, _ID)


def register(commands: Commands) -> None:
    """Add the command of this module."""
    add(commands, "predict", _predict, *_ARGUMENTS, json_option=False)


def _predict(given: Given) -> None:
    """Ask a model for a prediction."""
    version = f"/versions/{given.version}" if given.version else ""
    path, body = given.client.model_path(given.model), request_of(given)
    value(given.client.send("POST", f"{path}{version}/infer", body=body).json())


def request_of(given: Given) -> dict[str, Any]:
    """The inference request that the command line means. Raises: UsageError."""
    if (given.json is None) == (given.entities is None):
        raise UsageError("give either --json with a whole request, or --entities with the rows to ask about")
    body = {"inputs": []} if given.json is None else read_json(given.json)
    if not isinstance(body, dict):
        raise UsageError(f"--json is a JSON {type(body).__name__}; give an object with `inputs`")
    if parameters := _parameters(given):
        body = body | {"parameters": {**body.get("parameters", {}), **parameters}}
    return body | ({"id": given.id} if given.id else {})


def _parameters(given: Given) -> dict[str, Any]:
    """The request's parameters; those that only go with keys are left out beside a whole request. Raises: UsageError."""
    found: dict[str, Any] = {"explain": True} if given.explain else {}
    if given.attribute:
        pairs = (read_pair(text, "NAME=VALUE, as in --attribute country=NL") for text in given.attribute)
        found["attributes"] = dict(pairs)
    if given.entities is not None:
        found |= {"entities": read_json(given.entities)}
        found |= {"request": read_json(given.request)} if given.request else {}
        found |= {"unit": given.unit} if given.unit else {}
    return found
