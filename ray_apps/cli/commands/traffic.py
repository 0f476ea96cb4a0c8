"""`toque traffic`: who answers, who shares the units out with other models, and who is held out."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from ray_apps.cli.client import Client, client_of
from ray_apps.cli.command import MODEL, OVERRIDE, REASON, Failed, UsageError, add, add_limit, group
from ray_apps.cli.names import known_model, require
from ray_apps.cli.output import Column, chosen, listing, message, note, table, value

if TYPE_CHECKING:
    from ray_apps.cli.command import Commands


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    traffic = group(commands, "traffic", "show and split who answers; rules, layers, holdouts, rollback")
    showing = add(traffic, "show", _show, "show the split in force")
    showing.add_argument("model", help=MODEL)
    _register_set(traffic)
    back = add(traffic, "rollback", _rollback, "point the champion back to the version before")
    back.add_argument("model", help=MODEL)
    back.add_argument("--reason", default="", help=REASON)
    layer = add(
        traffic, "layer", _layer, "show who has which part of a layer; without a name, list the layers"
    )
    layer.add_argument("name", nargs="?", help="name of the layer (default: list all)")
    add_limit(layer, default=100)
    holding = add(
        traffic, "holdout", _holdout, "hold a share of all units out of every experiment of a model"
    )
    ending = add(traffic, "end-holdout", _end_holdout, "let held-out units take part again")
    for each in (holding, ending):
        each.add_argument("model", help=MODEL)
        each.add_argument(
            "name", help="of the holdout; models that use the same name hold out the same units"
        )
        each.add_argument("--reason", default="", help=REASON)
    holding.add_argument("share", type=float, help="part of all units, above 0 and below 1, as in 0.05")


def _register_set(traffic: Commands) -> None:
    setting = add(traffic, "set", _set, "split the traffic, as in: set MODEL canary=5:0.1 --shadow 6")
    setting.add_argument("model", help=MODEL)
    setting.add_argument(
        "arms",
        nargs="*",
        metavar="ARM=VERSION:SHARE",
        help="an arm beside the champion, which has the rest; without any, the champion has it all",
    )
    setting.add_argument(
        "--shadow",
        type=int,
        action="append",
        default=[],
        metavar="VERSION",
        help="a version that is asked too and answers nobody; repeatable",
    )
    setting.add_argument(
        "--layer", metavar="NAME:SHARE", help="the part of a layer that the arms share, as in growth:0.2"
    )
    setting.add_argument(
        "--rule",
        action="append",
        default=[],
        metavar="NAME=VERSION:CONDITION",
        help="requests whose attributes meet it go there before the split, as in 'eu=5:country in NL,BE and app >= 4'; "
        "repeatable",
    )
    setting.add_argument(
        "--expected",
        type=int,
        metavar="ENTRY",
        help="entry of the split this was decided on; a newer one is an error",
    )
    setting.add_argument("--reason", default="", help=REASON)
    setting.add_argument("--override", default="", metavar="REASON", help=OVERRIDE)


def arm_of(text: str) -> tuple[str, dict[str, Any]]:
    """An arm from `name=version:share`. Raises: UsageError."""
    name, equals, rest = text.partition("=")
    version, colon, share = rest.partition(":")
    try:
        if not (name and equals and colon):
            raise ValueError(text)  # noqa: TRY301  # one message for all
        return name, {"version": int(version), "share": float(share)}
    except ValueError as error:
        raise UsageError(
            f"{text!r} does not name an arm; write NAME=VERSION:SHARE, as in canary=5:0.1"
        ) from error


_CONDITION = re.compile(r"\s*([\w.-]+)(?:\s+(in|prefix)\s+|\s*(<=|>=|<|>)\s*)(\S.*?)\s*", re.DOTALL)


def rule_of(text: str) -> dict[str, Any]:
    """A rule from `name=target:condition [and condition …]`. Raises: UsageError."""
    name, equals, rest = text.partition("=")
    target, colon, conditions = rest.partition(":")
    found = [_CONDITION.fullmatch(one) for one in re.split(r"\sand\s", conditions)]
    if not (name and equals and target and colon and all(found)):
        raise UsageError(
            f"{text!r} does not make a rule; write NAME=VERSION:CONDITION, as in 'eu=5:country in NL,BE and app >= 4', with in, "
            "prefix, <, <=, > or >="
        )
    when = [
        {
            "attribute": one[1],
            "op": one[2] or one[3],
            "values": [each.strip() for each in one[4].split(",")],
        }
        for one in found
        if one is not None
    ]
    return {"name": name, "when": when, "to": int(target) if target.isdecimal() else target}


def layer_of(text: str | None) -> dict[str, Any] | None:
    """A layer's share from `name:share`. Raises: UsageError."""
    if text is None:
        return None
    name, _, share = text.partition(":")
    try:
        return {"name": name, "share": float(share)}
    except ValueError as error:
        raise UsageError(
            f"--layer {text!r} does not name a share of a layer; write NAME:SHARE, as in growth:0.2"
        ) from error


def _show(given: argparse.Namespace) -> int:
    client = client_of(given)
    _require_champion(client, given.model)
    _print(given, client.get(f"/models/{given.model}/traffic"))
    return 0


def _require_champion(client: Client, model: str) -> None:
    """Make sure that the model is there and has a champion. Raises: UnknownName; Failed."""
    with known_model(client, model):
        aliases = client.get(f"/models/{model}")["aliases"]
    if "champion" not in aliases:
        raise Failed(f"{model} has no champion yet; `toque models promote {model} VERSION` makes one")


def _set(given: argparse.Namespace) -> int:
    body = {
        "arms": dict(arm_of(text) for text in given.arms),
        "shadows": given.shadow,
        "layer": layer_of(given.layer),
        "rules": [rule_of(text) for text in given.rule],
        "expected": given.expected,
        "reason": given.reason,
        "override": given.override,
    }
    named = [*given.shadow, *(arm["version"] for arm in body["arms"].values())]
    client = client_of(given)
    _require_versions(client, given.model, named)
    _require_champion(client, given.model)
    _print(given, client.send("PUT", f"/models/{given.model}/traffic", body=body).json())
    return 0


def _require_versions(client: Client, model: str, named: list[int]) -> None:
    """Make sure that the model and its versions are there. Raises: UnknownName."""
    with known_model(client, model):
        versions = [str(each["version"]) for each in client.get(f"/models/{model}/versions")]
    for version in named:
        require("version", str(version), versions, see=f"toque models show {model}", place=f" of {model}")


def _rollback(given: argparse.Namespace) -> int:
    path = f"/models/{given.model}/aliases/champion/rollback"
    client = client_of(given)
    with known_model(client, given.model):
        version = client.send("POST", path, body={"reason": given.reason}).json()
    message(given.output, f"{given.model}@{version['version']} is the champion again", version)
    return 0


def _layer(given: argparse.Namespace) -> int:
    client = client_of(given)
    layers: list[str] = client.get("/layers")
    if given.name is None:
        empty = "no traffic is split in a layer"
        listing(given.output, (Column("layer", str),), layers, empty=empty, limit=given.limit)
        return 0
    require("layer", given.name, layers, see="toque traffic layer")
    found = client.get(f"/layers/{given.name}")
    if chosen(given.output) == "json":
        value(found)
        return 0
    table(given.output, _PARTS, found["parts"])
    note(f"{found['free']:.2%} is free")
    return 0


def _holdout(given: argparse.Namespace) -> int:
    path = f"/models/{given.model}/holdouts/{given.name}"
    body = {"share": given.share, "reason": given.reason}
    client = client_of(given)
    with known_model(client, given.model):
        _print(given, client.send("PUT", path, body=body).json())
    return 0


def _end_holdout(given: argparse.Namespace) -> int:
    client = client_of(given)
    with known_model(client, given.model):
        split = client.get(f"/models/{given.model}/traffic")
    held = [each["name"] for each in split["holdouts"]]
    see, place = f"toque traffic show {given.model}", f" of {given.model}"
    require("holdout", given.name, held, see=see, place=place)
    path = f"/models/{given.model}/holdouts/{given.name}"
    _print(given, client.send("DELETE", path, params={"reason": given.reason}).json())
    return 0


def _print(given: argparse.Namespace, split: dict[str, Any]) -> None:
    """The split as one table: rules come first, as they are asked first, and what is held out last."""
    if chosen(given.output) == "json":
        value(split)
        return
    table(given.output, _SPLIT, _rows(split))
    note(f"entry {split['entry']}")


def _rows(split: dict[str, Any]) -> list[dict[str, Any]]:
    rules = [
        {
            "kind": "rule",
            "name": rule["name"],
            "version": rule["to"],
            "share": None,
            "about": " and ".join(map(_condition, rule["when"])),
        }
        for rule in split["rules"]
    ]
    within = ""
    if split["layer"]:
        part = sum(stop - start for start, stop in split["layer"]["buckets"]) / 10_000
        within = f"of the {part:.2%} that the arms share of layer {split['layer']['name']}"
    arms = [
        {
            "kind": "arm",
            "name": arm["name"],
            "version": arm["version"],
            "share": arm["share"],
            "about": within,
        }
        for arm in split["arms"]
    ]
    shadows = [
        {"kind": "shadow", "name": "", "version": version, "share": None, "about": "answers nobody"}
        for version in split["shadows"]
    ]
    holdouts = [
        {
            "kind": "holdout",
            "name": each["name"],
            "version": None,
            "share": each["share"],
            "about": "of all units take no part",
        }
        for each in split["holdouts"]
    ]
    return [*rules, *arms, *shadows, *holdouts]


def _condition(one: dict[str, Any]) -> str:
    return f"{one['attribute']} {one['op']} {','.join(one['values'])}"


def _spans(buckets: list[list[int]]) -> str:
    return ", ".join(f"{start}-{stop - 1}" for start, stop in buckets)


_SPLIT = (
    Column("kind", "kind"),
    Column("name", "name"),
    Column("version", "version"),
    Column("share", lambda row: None if row["share"] is None else f"{row['share']:.2%}"),
    Column("note", "about", text=True),
)
_PARTS = (
    Column("model", "model"),
    Column("part", lambda row: f"{row['share']:.2%}"),
    Column("buckets", lambda row: _spans(row["buckets"])),
    Column("in use", "used"),
)
