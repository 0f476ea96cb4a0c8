"""`toque models policy`, `card`, `audit` and `made-from`: what is recorded of a model, and whether it still stands."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ray_apps.cli.client import client_of
from ray_apps.cli.command import add
from ray_apps.cli.commands.calls import read_json
from ray_apps.cli.output import complain, say, table, value
from registry import Lineage, TableSnapshot

if TYPE_CHECKING:
    from ray_apps.cli.command import Commands


def register(models: Commands) -> None:
    """Add the commands to the group of models."""
    policy = add(models, "policy", _policy, "show, or set, what a version needs before it may go live")
    policy.add_argument("model")
    policy.add_argument(
        "--set",
        metavar="JSON",
        help='as in {"guarded": ["champion"], "approvals": 1, "gates": ["offline"]}, @file or -',
    )
    card = add(models, "card", _card, "print a version's model card, in Markdown")
    card.add_argument("model")
    card.add_argument("version", help="its number or an alias")
    auditing = add(
        models, "audit", _audit, "read a model's whole history and every file; exit code 1 if damaged"
    )
    auditing.add_argument("model")
    made_from = add(
        models, "made-from", _made_from, "list the versions that depend on a piece of data or code"
    )
    made_from.add_argument(
        "source", help="TABLE@VERSION, a run's id, or a digest of code or of a feature view"
    )


def source_of(text: str) -> TableSnapshot | str:
    """What a version may be made from: a table as of a version (`TABLE@VERSION`), else an id or digest."""
    table_name, at, version = text.rpartition("@")
    return TableSnapshot(name=table_name, version=int(version)) if at and version.isdecimal() else text


def _policy(given: argparse.Namespace) -> int:
    client, path = client_of(given), f"/models/{given.model}/policy"
    value(
        client.get(path) if given.set is None else client.send("PUT", path, body=read_json(given.set)).json()
    )
    return 0


def _card(given: argparse.Namespace) -> int:
    say(client_of(given).get(f"/models/{given.model}/versions/{given.version}/card")["card"])
    return 0


def _audit(given: argparse.Namespace) -> int:
    found = client_of(given).send("POST", f"/models/{given.model}/audit").json()
    if found["damaged"]:
        complain(f"{given.model} is damaged: {found['damaged']}")
        return 1
    read = f"{found['entries']} entries and {found['blobs']} files ({found['size_bytes']:,} bytes)"
    say(f"{given.model}: {read} are as they were written")
    return 0


def _made_from(given: argparse.Namespace) -> int:
    client, source = client_of(given), source_of(given.source)
    rows = []
    for model in client.get("/models"):
        traffic = model["traffic"] or {"arms": []}
        for version in client.get(f"/models/{model['name']}/versions"):
            if Lineage.model_validate(version["lineage"]).depends_on(source):
                number = version["version"]
                aliases = [alias for alias, target in model["aliases"].items() if target == number]
                arms = [arm["name"] for arm in traffic["arms"] if arm["version"] == number]
                rows.append((model["name"], number, ", ".join(aliases) or "-", ", ".join(arms) or "-"))
    table(("model", "version", "aliases", "serves as"), rows)
    return 0
