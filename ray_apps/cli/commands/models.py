"""`toque models`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ray_apps.cli.client import client_of
from ray_apps.cli.command import OVERRIDE, add, group
from ray_apps.cli.commands import model_files, model_record, signing
from ray_apps.cli.output import say, table

if TYPE_CHECKING:
    from ray_apps.cli.command import Commands


def register(commands: Commands) -> None:
    """Add the commands."""
    models = group(
        commands, "models", "the registry: list, show, register, download, policy, approve, sign, promote, …"
    )
    add(models, "list", _list, "list the models")
    add(models, "show", _show, "show a model's versions").add_argument("model")
    history = add(models, "history", _history, "who changed what, when and why")
    history.add_argument("model")
    history.add_argument("--limit", type=int, default=30)
    for name, run in (("approve", _approve), ("reject", _reject)):
        review = add(models, name, run, f"{name} a version in your own name")
        review.add_argument("model")
        review.add_argument("version", type=int)
        review.add_argument("--comment", default="")
    model_files.register(models)
    model_record.register(models)
    signing.register(models)
    promote = add(models, "promote", _promote, "make a version the champion, and end its canary and shadow")
    promote.add_argument("model")
    promote.add_argument("version", type=int)
    promote.add_argument("--reason", default="")
    promote.add_argument("--expected", type=int, help="the champion this was decided on")
    promote.add_argument("--override", default="", metavar="REASON", help=OVERRIDE)


def _list(given: argparse.Namespace) -> int:
    rows = [
        (each["name"], len(each["versions"]), _aliases(each["aliases"]), each["created_at"])
        for each in client_of(given).get("/models")
    ]
    table(("model", "versions", "aliases", "since"), rows)
    return 0


def _show(given: argparse.Namespace) -> int:
    client = client_of(given)
    aliases = client.get(f"/models/{given.model}")["aliases"]
    rows = [
        (
            each["version"],
            each["status"],
            _aliases({name: number for name, number in aliases.items() if number == each["version"]}),
            ", ".join(
                f"{name}: {'passed' if gate['passed'] else 'failed'}" for name, gate in each["gates"].items()
            ),
            ", ".join(said["actor"] for said in each["approvals"] if said["approved"]),
            each["author"],
            each["created_at"],
        )
        for each in client.get(f"/models/{given.model}/versions")
    ]
    table(("version", "status", "alias", "gates", "approved by", "author", "created"), rows)
    return 0


def _history(given: argparse.Namespace) -> int:
    entries = client_of(given).get(f"/models/{given.model}/history", limit=given.limit)
    rows = [
        (each["number"], each["at"], each["actor"], each["body"].get("kind"), each["body"].get("reason", ""))
        for each in entries
    ]
    table(("entry", "at", "actor", "change", "reason"), rows)
    return 0


def _approve(given: argparse.Namespace) -> int:
    return _review(given, "approve")


def _reject(given: argparse.Namespace) -> int:
    return _review(given, "reject")


def _review(given: argparse.Namespace, verb: str) -> int:
    path = f"/models/{given.model}/versions/{given.version}/{verb}"
    client_of(given).send("POST", path, body={"comment": given.comment})
    say(
        f"{given.model}@{given.version}: {verb}d"
        if verb.endswith("e")
        else f"{given.model}@{given.version}: {verb}ed"
    )
    return 0


def _promote(given: argparse.Namespace) -> int:
    body = {"version": given.version, "reason": given.reason, "override": given.override}
    body |= {} if given.expected is None else {"expected": given.expected}
    client_of(given).send("POST", f"/models/{given.model}/promote", body=body)
    say(f"{given.model}@{given.version} is the champion")
    return 0


def _aliases(aliases: dict[str, int]) -> str:
    return ", ".join(f"{name}={version}" for name, version in aliases.items()) or "-"
