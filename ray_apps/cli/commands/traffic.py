"""`toque traffic`: who answers, who shares the units out with other models, and who is held out."""

from __future__ import annotations

import re
from typing import Any

from toque.ray_apps.cli.arguments import (
    EXPECTED_CHAMPION,
    MODEL,
    OVERRIDE,
    REASON,
    Commands,
    Given,
    add,
    arg,
    group,
    limit,
    read_pair,
    repeatable,
)
from toque.ray_apps.cli.errors import Failed, UsageError
from toque.ray_apps.cli.names import require
from toque.ray_apps.cli.output import Column, columns, listing, message, see_page, table

_ARMS = arg(
    "arms ARM=VERSION:SHARE",
    "an arm beside the champion, which has the rest; without any, the champion has it all",
    nargs="*",
)
_SHADOW = repeatable("--shadow VERSION", "a version that is asked too and answers nobody", type=int)
_LAYER_SHARE = arg(
    "--layer NAME:SHARE", "the part of a layer that the arms share, as in growth:0.2", dest="layer_share"
)
_RULE = repeatable(
    "--rule NAME=VERSION:CONDITION",
    "requests whose attributes meet it go there before the split, as in 'eu=5:country in NL,BE and app >= 4'",
)
_EXPECTED = arg(
    "--expected ENTRY", "entry of the split this was decided on; a newer one is an error", type=int
)
_LAYER = arg("layer name", "name of the layer (default: list all)", nargs="?")
_OF_HOLDOUT = "of the holdout; models that use the same name hold out the same units"
_NEW_HOLDOUT = arg("name", _OF_HOLDOUT)
_HOLDOUT = arg("holdout name", _OF_HOLDOUT)
_SHARE = arg("share", "part of all units, above 0 and below 1, as in 0.05", type=float)


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    traffic = group(commands, "traffic", "Show and split who answers; rules, layers, holdouts, rollback.")
    add(traffic, "show", _show, MODEL)
    add(traffic, "set", _set, MODEL, _ARMS, _SHADOW, _LAYER_SHARE, _RULE, _EXPECTED, REASON, OVERRIDE)
    add(traffic, "rollback", _rollback, MODEL, EXPECTED_CHAMPION, REASON)
    add(traffic, "layer", _layer, _LAYER, limit(100))
    add(traffic, "holdout", _holdout, MODEL, _NEW_HOLDOUT, _SHARE, REASON)
    add(traffic, "end-holdout", _end_holdout, MODEL, _HOLDOUT, REASON)


def arm_of(text: str) -> tuple[str, dict[str, Any]]:
    """Read an arm from `name=version:share`. Raises: UsageError."""
    wanted = "NAME=VERSION:SHARE, as in canary=5:0.1"
    name, target = read_pair(text, wanted)
    version, _, share = target.partition(":")
    try:
        return name, {"version": int(version), "share": float(share)}
    except ValueError as error:
        raise UsageError(f"{text!r} does not name an arm; write {wanted}") from error


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
        {"attribute": one[1], "op": one[2] or one[3], "values": [each.strip() for each in one[4].split(",")]}
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


def _show(given: Given) -> None:
    """Show the split in force."""
    _require_champion(given)
    _print(given, given.client.get(f"/models/{given.model}/traffic"))
    see_page(given.output, given.client.page("traffic", given.model))


def _require_champion(given: Given) -> None:
    """Make sure that the model has a champion. Raises: Failed; Refused if there is no such model."""
    if "champion" not in given.client.get(f"/models/{given.model}")["aliases"]:
        raise Failed(
            f"{given.model} has no champion yet; `toque models promote {given.model} VERSION` makes one"
        )


def _set(given: Given) -> None:
    """Split the traffic, as in: set MODEL canary=5:0.1 --shadow 6."""
    arms = dict(arm_of(text) for text in given.arms)
    body = {
        "arms": arms,
        "shadows": given.shadow,
        "layer": layer_of(given.layer_share),
        "rules": [rule_of(text) for text in given.rule],
        "expected": given.expected,
        "reason": given.reason,
        "override": given.override,
    }
    require(given, "version", *given.shadow, *(arm["version"] for arm in arms.values()))
    _require_champion(given)
    _print(given, given.client.send("PUT", f"/models/{given.model}/traffic", body=body).json())


def _rollback(given: Given) -> None:
    """Point the champion back to the version before."""
    path = f"/models/{given.model}/aliases/champion/rollback"
    expected = given.expected
    if expected is None:  # the champion that is seen now, so that two at once go back once
        expected = given.client.get(f"/models/{given.model}")["aliases"].get("champion")
    body = {"reason": given.reason, "expected": expected}
    version = given.client.send("POST", path, body=body).json()
    message(given.output, f"{given.model}@{version['version']} is the champion again", version)


def _layer(given: Given) -> None:
    """Show who has which part of a layer; without a name, list the layers."""
    if given.layer is None:
        empty, layers = "no traffic is split in a layer", given.client.get("/layers")
        listing(given.output, [Column("layer", str)], layers, empty=empty, limit=given.limit)
        return
    require(given, "layer", given.layer)
    found = given.client.get(f"/layers/{given.layer}")
    table(given.output, _PARTS, found["parts"], whole=found, remark=f"{found['free']:.2%} is free")


def _holdout(given: Given) -> None:
    """Hold a share of all units out of every experiment of a model."""
    path = f"/models/{given.model}/holdouts/{given.name}"
    body = {"share": given.share, "reason": given.reason}
    _print(given, given.client.send("PUT", path, body=body).json())


def _end_holdout(given: Given) -> None:
    """Let held-out units take part again."""
    require(given, "holdout", given.holdout)
    path = f"/models/{given.model}/holdouts/{given.holdout}"
    _print(given, given.client.send("DELETE", path, params={"reason": given.reason}).json())


def _print(given: Given, split: dict[str, Any]) -> None:
    table(given.output, _SPLIT, _rows(split), whole=split, remark=f"entry {split['entry']}")


def _rows(split: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each part of the split with its kind and a note: rules come first, as they are asked first, and what is held out last."""
    within = ""
    if split["layer"]:
        part = sum(stop - start for start, stop in split["layer"]["buckets"]) / 10_000
        within = f"of the {part:.2%} that the arms share of layer {split['layer']['name']}"
    return [
        *(
            {"kind": "rule", "version": each["to"], "note": _conditions(each), **each}
            for each in split["rules"]
        ),
        *({"kind": "arm", "note": within, **each} for each in split["arms"]),
        *({"kind": "shadow", "version": each, "note": "answers nobody"} for each in split["shadows"]),
        *({"kind": "holdout", "note": "of all units take no part", **each} for each in split["holdouts"]),
    ]


def _conditions(rule: dict[str, Any]) -> str:
    return " and ".join(f"{one['attribute']} {one['op']} {','.join(one['values'])}" for one in rule["when"])


_SPLIT = columns("kind | name: name? | version: version? | share: share? as {:.2%} | note", texts="note")
_PARTS = columns(
    "model | part: share as {:.2%} | buckets | in use: used",
    values={"buckets": lambda part: ", ".join(f"{start}-{stop - 1}" for start, stop in part["buckets"])},
)
