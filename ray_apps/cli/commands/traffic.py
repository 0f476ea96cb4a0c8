"""`toque traffic`: who answers, who shares the units out with other models, and who is held out."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from ray_apps.cli.client import client_of
from ray_apps.cli.command import OVERRIDE, UsageError, add, group
from ray_apps.cli.output import say, table

if TYPE_CHECKING:
    from ray_apps.cli.command import Commands


def register(commands: Commands) -> None:
    """Add the commands."""
    traffic = group(commands, "traffic", "who answers: show, set, rollback, layer, holdout, end-holdout")
    add(traffic, "show", _show, "show the split in force").add_argument("model")
    setting = add(traffic, "set", _set, "split the traffic, as in: set MODEL canary=5:0.1 --shadow 6")
    setting.add_argument("model")
    setting.add_argument("arms", nargs="*", metavar="ARM=VERSION:SHARE", help="none: the champion has it all")
    setting.add_argument("--shadow", type=int, action="append", default=[], metavar="VERSION")
    setting.add_argument(
        "--layer", metavar="NAME:SHARE", help="the part of a layer that the arms share, as in growth:0.2"
    )
    setting.add_argument(
        "--rule",
        action="append",
        default=[],
        metavar="NAME=VERSION:CONDITION",
        help="requests whose attributes meet it go there before the split, as in 'eu=5:country in NL,BE and app >= 4'",
    )
    setting.add_argument("--expected", type=int, help="entry of the split this was decided on")
    setting.add_argument("--reason", default="")
    setting.add_argument("--override", default="", metavar="REASON", help=OVERRIDE)
    back = add(traffic, "rollback", _rollback, "point the champion back to the version before")
    back.add_argument("model")
    back.add_argument("--reason", default="")
    layer = add(
        traffic, "layer", _layer, "show who has which part of a layer; without a name, list the layers"
    )
    layer.add_argument("name", nargs="?")
    holding = add(
        traffic, "holdout", _holdout, "hold a share of all units out of every experiment of a model"
    )
    ending = add(traffic, "end-holdout", _end_holdout, "let held-out units take part again")
    for each in (holding, ending):
        each.add_argument("model")
        each.add_argument("name", help="models that use the same name hold out the same units")
        each.add_argument("--reason", default="")
    holding.add_argument("share", type=float)


def arm_of(text: str) -> tuple[str, dict[str, Any]]:
    """An arm from `name=version:share`. Raises: UsageError."""
    name, equals, rest = text.partition("=")
    version, colon, share = rest.partition(":")
    try:
        if not (name and equals and colon):
            raise ValueError(text)  # noqa: TRY301  # one message for all
        return name, {"version": int(version), "share": float(share)}
    except ValueError as error:
        raise UsageError(f"{text!r} is no arm; write NAME=VERSION:SHARE, as in canary=5:0.1") from error


_CONDITION = re.compile(r"\s*([\w.-]+)(?:\s+(in|prefix)\s+|\s*(<=|>=|<|>)\s*)(\S.*?)\s*", re.DOTALL)


def rule_of(text: str) -> dict[str, Any]:
    """A rule from `name=target:condition [and condition …]`. Raises: UsageError."""
    name, equals, rest = text.partition("=")
    target, colon, conditions = rest.partition(":")
    found = [_CONDITION.fullmatch(one) for one in re.split(r"\sand\s", conditions)]
    if not (name and equals and target and colon and all(found)):
        raise UsageError(
            f"{text!r} is no rule; write NAME=VERSION:CONDITION, as in 'eu=5:country in NL,BE and app >= 4', with in, "
            "prefix, <, <=, > or >="
        )
    when = [
        {
            "attribute": one[1],
            "op": one[2] or one[3],
            "values": [value.strip() for value in one[4].split(",")],
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
        raise UsageError(f"{text!r} is no part of a layer; write NAME:SHARE, as in growth:0.2") from error


def _show(given: argparse.Namespace) -> int:
    _print(client_of(given).get(f"/models/{given.model}/traffic"))
    return 0


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
    _print(client_of(given).send("PUT", f"/models/{given.model}/traffic", body=body).json())
    return 0


def _rollback(given: argparse.Namespace) -> int:
    path = f"/models/{given.model}/aliases/champion/rollback"
    version = client_of(given).send("POST", path, body={"reason": given.reason}).json()
    say(f"{given.model}@{version['version']} is the champion again")
    return 0


def _layer(given: argparse.Namespace) -> int:
    client = client_of(given)
    if given.name is None:
        table(("layer",), [(name,) for name in client.get("/layers")])
        return 0
    found = client.get(f"/layers/{given.name}")
    rows = [
        (each["model"], f"{each['share']:.2%}", _spans(each["buckets"]), "yes" if each["used"] else "no")
        for each in found["parts"]
    ]
    table(("model", "part", "buckets", "in use"), rows)
    say(f"{found['free']:.2%} is free")
    return 0


def _holdout(given: argparse.Namespace) -> int:
    path = f"/models/{given.model}/holdouts/{given.name}"
    body = {"share": given.share, "reason": given.reason}
    _print(client_of(given).send("PUT", path, body=body).json())
    return 0


def _end_holdout(given: argparse.Namespace) -> int:
    path = f"/models/{given.model}/holdouts/{given.name}"
    _print(client_of(given).send("DELETE", path, params={"reason": given.reason}).json())
    return 0


def _print(split: dict[str, Any]) -> None:
    rows = [(arm["name"], arm["version"], f"{arm['share']:.2%}") for arm in split["arms"]]
    table(("arm", "version", "share"), [*rows, *(("shadow", version, "-") for version in split["shadows"])])
    for rule in split["rules"]:
        target = rule["to"] if rule["to"] == "champion" else f"version {rule['to']}"
        say(f"rule {rule['name']}: {' and '.join(map(_condition, rule['when']))} goes to {target}")
    for holdout in split["holdouts"]:
        say(f"holdout {holdout['name']}: {holdout['share']:.2%} of all units are held out")
    if split["layer"]:
        part = sum(stop - start for start, stop in split["layer"]["buckets"]) / 10_000
        say(f"layer {split['layer']['name']}: the arms share {part:.2%} of it")
    say(f"entry {split['entry']}")


def _condition(one: dict[str, Any]) -> str:
    return f"{one['attribute']} {one['op']} {','.join(one['values'])}"


def _spans(buckets: list[list[int]]) -> str:
    return ", ".join(f"{start}-{stop - 1}" for start, stop in buckets)
