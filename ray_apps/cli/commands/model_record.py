"""`toque models policy`, `card`, `audit` and `made-from`: what is recorded of a model, and whether it still stands."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ray_apps.cli.client import Client, client_of
from ray_apps.cli.command import MODEL, VERSION_OR_ALIAS, Failed, add, add_limit
from ray_apps.cli.commands.calls import read_json
from ray_apps.cli.names import known_model
from ray_apps.cli.output import Column, facts, listing, message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ray_apps.cli.command import Commands
    from registry import TableSnapshot


def register(models: Commands) -> None:
    """Add the commands of this module to the group of models."""
    policy = add(models, "policy", _policy, "show, or set, what a version needs before it may go live")
    policy.add_argument("model", help=MODEL)
    policy.add_argument(
        "--set",
        metavar="JSON",
        help='the new policy, as in {"guarded": ["champion"], "approvals": 1, "gates": ["offline"]}, @file or -',
    )
    card = add(models, "card", _card, "print a version's model card, in Markdown")
    card.add_argument("model", help=MODEL)
    card.add_argument("version", help=VERSION_OR_ALIAS)
    auditing = add(
        models, "audit", _audit, "read a model's whole history and every file; exit code 1 if damaged"
    )
    auditing.add_argument("model", help=MODEL)
    made_from = add(
        models, "made-from", _made_from, "list the versions that depend on a piece of data or code"
    )
    made_from.add_argument(
        "source", help="TABLE@VERSION, a run's ID, or a digest of code or of a feature view"
    )
    add_limit(made_from, default=100)


def source_of(text: str) -> TableSnapshot | str:
    """What a version may be made from: a table as of a version (`TABLE@VERSION`), else an id or digest."""
    from registry import TableSnapshot  # late: it brings the tables, a third of a second

    table_name, at, version = text.rpartition("@")
    return TableSnapshot(name=table_name, version=int(version)) if at and version.isdecimal() else text


def _policy(given: argparse.Namespace) -> int:
    client, path = client_of(given), f"/models/{given.model}/policy"
    with known_model(client, given.model):
        if given.set is None:
            policy = client.get(path)
        else:
            policy = client.send("PUT", path, body=read_json(given.set)).json()
    columns = [Column(name.replace("_", " "), name, text=True) for name in policy]
    facts(given.output, columns, policy)
    return 0


def _card(given: argparse.Namespace) -> int:
    client = client_of(given)
    with known_model(client, given.model, given.version):
        card = client.get(f"/models/{given.model}/versions/{given.version}/card")
    message(given.output, card["card"], card)
    return 0


def _audit(given: argparse.Namespace) -> int:
    client = client_of(given)
    with known_model(client, given.model):
        found = client.send("POST", f"/models/{given.model}/audit").json()
    if found["damaged"]:
        raise Failed(f"{given.model} is damaged: {found['damaged']}")
    read = f"{found['entries']} entries and {found['blobs']} files ({found['size_bytes']} bytes)"
    message(given.output, f"{given.model}: {read} are as they were written", found)
    return 0


def _made_from(given: argparse.Namespace) -> int:
    client, source = client_of(given), source_of(given.source)
    rows = sorted(_dependents(client, source), key=lambda each: str(each["created_at"]), reverse=True)
    empty = f"no version was made from {given.source}"
    listing(given.output, _DEPENDENTS, rows, empty=empty, limit=given.limit)
    return 0


def _dependents(client: Client, source: TableSnapshot | str) -> Iterator[dict[str, Any]]:
    from registry import Lineage  # late: see `source_of`

    for model in client.get("/models"):
        traffic = model["traffic"] or {"arms": []}
        for version in client.get(f"/models/{model['name']}/versions"):
            if Lineage.model_validate(version["lineage"]).depends_on(source):
                number = version["version"]
                yield {
                    "model": model["name"],
                    "version": number,
                    "aliases": [alias for alias, target in model["aliases"].items() if target == number],
                    "arms": [arm["name"] for arm in traffic["arms"] if arm["version"] == number],
                    "created_at": version["created_at"],
                }


_DEPENDENTS = (
    Column("model", "model"),
    Column("version", "version"),
    Column("aliases", "aliases"),
    Column("serves as", "arms"),
    Column("created", "created_at"),
)
