"""`toque predict`: ask a model, by tensors or by key."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ray_apps.cli.client import client_of
from ray_apps.cli.command import MODEL, UsageError, add
from ray_apps.cli.commands.calls import read_json
from ray_apps.cli.names import known_model
from ray_apps.cli.output import value

if TYPE_CHECKING:
    from ray_apps.cli.command import Commands


def register(commands: Commands) -> None:
    """Add the command of this module."""
    asking = add(commands, "predict", _predict, "ask a model for a prediction", json_option=False)
    asking.add_argument("model", help=MODEL)
    asking.add_argument(
        "--version", type=int, metavar="N", help="ask this version, whatever the traffic policy says"
    )
    asking.add_argument(
        "--json", metavar="JSON", help="a whole inference request (Open Inference Protocol), @file or -"
    )
    asking.add_argument(
        "--entities", metavar="JSON", help='join keys of each row, as in \'[{"airport": "JFK"}]\', @file or -'
    )
    asking.add_argument(
        "--request",
        metavar="JSON",
        help="values known only at request time, a row for each of the entities, @file or -",
    )
    asking.add_argument("--unit", help="user or thing that the traffic policy keeps on one arm")
    asking.add_argument(
        "--attribute",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an attribute that the policy's rules look at; repeatable",
    )
    asking.add_argument("--explain", action="store_true", help="say what each feature added to the answer")
    asking.add_argument("--id", help="prediction ID (default: a fresh one)")


def request_of(given: argparse.Namespace) -> dict[str, Any]:
    """The inference request that the command line means. Raises: UsageError."""
    if (given.json is None) == (given.entities is None):
        raise UsageError("give either --json with a whole request, or --entities with the rows to ask about")
    if given.json is not None:
        body = read_json(given.json)
        if not isinstance(body, dict):
            raise UsageError(f"--json is a JSON {type(body).__name__}; give an object with `inputs`")
        shared = _shared(given)
        if shared:
            body = body | {"parameters": {**body.get("parameters", {}), **shared}}
        return body | ({"id": given.id} if given.id else {})
    parameters: dict[str, Any] = {"entities": read_json(given.entities)}
    parameters |= {"request": read_json(given.request)} if given.request else {}
    parameters |= {"unit": given.unit} if given.unit else {}
    parameters |= _shared(given)
    return {"inputs": [], "parameters": parameters} | ({"id": given.id} if given.id else {})


def _shared(given: argparse.Namespace) -> dict[str, Any]:
    """The parameters that go with tensors and with keys alike. Raises: UsageError."""
    shared: dict[str, Any] = {"explain": True} if given.explain else {}
    pairs = [text.partition("=") for text in given.attribute]
    for name, equals, _ in pairs:
        if not (name and equals):
            raise UsageError(f"--attribute {name!r}: write NAME=VALUE, as in country=NL")
    return shared | ({"attributes": {name: value for name, _, value in pairs}} if pairs else {})


def _predict(given: argparse.Namespace) -> int:
    version = f"/versions/{given.version}" if given.version else ""
    body, client = request_of(given), client_of(given)
    with known_model(client, given.model, given.version):
        answer = client.send("POST", f"/v2/models/{given.model}{version}/infer", body=body)
    value(answer.json())
    return 0
