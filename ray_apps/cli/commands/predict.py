"""`toque predict`: ask a model, by tensors or by key."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ray_apps.cli.client import client_of
from ray_apps.cli.command import UsageError, add
from ray_apps.cli.commands.calls import read_json
from ray_apps.cli.output import value

if TYPE_CHECKING:
    from ray_apps.cli.command import Commands


def register(commands: Commands) -> None:
    """Add the command."""
    asking = add(commands, "predict", _predict, "ask a model for a prediction")
    asking.add_argument("model")
    asking.add_argument("--version", type=int, help="ask this version, whatever the traffic policy says")
    asking.add_argument("--json", help="a whole inference request (Open Inference Protocol), @file or -")
    asking.add_argument(
        "--entities", help='join keys of each row, as in \'[{"airport": "JFK"}]\', @file or -'
    )
    asking.add_argument("--request", help="values known only at request time, a row for each of the entities")
    asking.add_argument("--unit", help="whom the traffic policy keeps on one arm")
    asking.add_argument(
        "--attribute",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what the policy's rules look at",
    )
    asking.add_argument("--explain", action="store_true", help="say what each feature added to the answer")
    asking.add_argument("--id", help="prediction id (default: a fresh one)")


def request_of(given: argparse.Namespace) -> dict[str, Any]:
    """The inference request that the command line means. Raises: UsageError."""
    if (given.json is None) == (given.entities is None):
        raise UsageError("give either --json with a whole request, or --entities with the rows to ask about")
    if given.json is not None:
        body = read_json(given.json)
        if not isinstance(body, dict):
            raise UsageError("--json must be an object with `inputs`")
        said = _said(given)
        if said:
            body = body | {"parameters": {**body.get("parameters", {}), **said}}
        return body | ({"id": given.id} if given.id else {})
    parameters: dict[str, Any] = {"entities": read_json(given.entities)}
    parameters |= {"request": read_json(given.request)} if given.request else {}
    parameters |= {"unit": given.unit} if given.unit else {}
    parameters |= _said(given)
    return {"inputs": [], "parameters": parameters} | ({"id": given.id} if given.id else {})


def _said(given: argparse.Namespace) -> dict[str, Any]:
    """What goes with tensors and with keys alike."""
    said: dict[str, Any] = {"explain": True} if given.explain else {}
    pairs = [text.partition("=") for text in given.attribute]
    for name, equals, _ in pairs:
        if not (name and equals):
            raise UsageError(f"--attribute {name!r}: write NAME=VALUE, as in country=NL")
    return said | ({"attributes": {name: value for name, _, value in pairs}} if pairs else {})


def _predict(given: argparse.Namespace) -> int:
    version = f"/versions/{given.version}" if given.version else ""
    answer = client_of(given).send("POST", f"/v2/models/{given.model}{version}/infer", body=request_of(given))
    value(answer.json())
    return 0
