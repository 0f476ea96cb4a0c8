"""`toque models`: the registry's models and versions, who approved them, and which one is live."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ray_apps.cli.client import client_of
from ray_apps.cli.command import MODEL, OVERRIDE, REASON, VERSION, add, add_limit, group
from ray_apps.cli.commands import model_files, model_record, signing
from ray_apps.cli.names import known_model
from ray_apps.cli.output import Column, listing, message

if TYPE_CHECKING:
    from ray_apps.cli.command import Commands


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    models = group(commands, "models", "list, show, register, approve, sign, promote, download models")
    add_limit(add(models, "list", _list, "list the models, the newest first"), default=100)
    showing = add(models, "show", _show, "show a model's versions, the newest first")
    showing.add_argument("model", help=MODEL)
    add_limit(showing)
    history = add(models, "history", _history, "show who changed what, when and why, the newest first")
    history.add_argument("model", help=MODEL)
    add_limit(history)
    for name, run in (("approve", _approve), ("reject", _reject)):
        review = add(models, name, run, f"{name} a version in your own name")
        review.add_argument("model", help=MODEL)
        review.add_argument("version", type=int, help=VERSION)
        review.add_argument("--comment", default="", help="what you found; it stands beside your name")
    model_files.register(models)
    model_record.register(models)
    signing.register(models)
    promote = add(models, "promote", _promote, "make a version the champion, and end its canary and shadow")
    promote.add_argument("model", help=MODEL)
    promote.add_argument("version", type=int, help=VERSION)
    promote.add_argument("--reason", default="", help=REASON)
    promote.add_argument(
        "--expected",
        type=int,
        metavar="VERSION",
        help="the champion this was decided on; another one is an error",
    )
    promote.add_argument("--override", default="", metavar="REASON", help=OVERRIDE)


def _list(given: argparse.Namespace) -> int:
    found = sorted(client_of(given).get("/models"), key=lambda each: str(each["created_at"]), reverse=True)
    listing(given.output, _MODELS, found, empty="there are no models", limit=given.limit)
    return 0


def _show(given: argparse.Namespace) -> int:
    client = client_of(given)
    with known_model(client, given.model):
        aliases = client.get(f"/models/{given.model}")["aliases"]
        versions = client.get(f"/models/{given.model}/versions")
    rows = [
        each | {"aliases": [name for name, number in aliases.items() if number == each["version"]]}
        for each in reversed(versions)
    ]
    listing(given.output, _VERSIONS, rows, empty=f"{given.model} has no version", limit=given.limit)
    return 0


def _history(given: argparse.Namespace) -> int:
    client = client_of(given)
    with known_model(client, given.model):
        entries = client.get(f"/models/{given.model}/history", limit=given.limit + 1)
    empty = f"nothing was changed of {given.model}"
    listing(given.output, _HISTORY, entries[::-1], empty=empty, limit=given.limit)
    return 0


def _approve(given: argparse.Namespace) -> int:
    return _review(given, "approve", "approved")


def _reject(given: argparse.Namespace) -> int:
    return _review(given, "reject", "rejected")


def _review(given: argparse.Namespace, verb: str, done: str) -> int:
    client, path = client_of(given), f"/models/{given.model}/versions/{given.version}/{verb}"
    with known_model(client, given.model, given.version):
        version = client.send("POST", path, body={"comment": given.comment}).json()
    message(given.output, f"{given.model}@{given.version}: {done}", version)
    return 0


def _promote(given: argparse.Namespace) -> int:
    body = {"version": given.version, "reason": given.reason, "override": given.override}
    body |= {} if given.expected is None else {"expected": given.expected}
    client = client_of(given)
    with known_model(client, given.model, given.version):
        version = client.send("POST", f"/models/{given.model}/promote", body=body).json()
    message(given.output, f"{given.model}@{given.version} is the champion", version)
    return 0


def _gates(version: dict[str, Any]) -> list[str]:
    return [f"{name} {'passed' if gate['passed'] else 'failed'}" for name, gate in version["gates"].items()]


def _version(entry: dict[str, Any]) -> Any:
    """The version that an entry of the journal is about; one that makes a version holds all of it."""
    version = entry["body"].get("version")
    return version["version"] if isinstance(version, dict) else version


_MODELS = (
    Column("model", "name"),
    Column("versions", lambda row: len(row["versions"])),
    Column("aliases", lambda row: [f"{name}={version}" for name, version in row["aliases"].items()]),
    Column("created", "created_at"),
    Column("description", "description", text=True),
    Column("tags", lambda row: [f"{name}={value}" for name, value in row["tags"].items()], wide=True),
)
_VERSIONS = (
    Column("version", "version"),
    Column("status", "status"),
    Column("aliases", "aliases"),
    Column("gates", _gates, text=True),
    Column(
        "approved by", lambda row: [one["actor"] for one in row["approvals"] if one["approved"]], text=True
    ),
    Column("author", "author"),
    Column("created", "created_at"),
    Column("metrics", "metrics", wide=True),
    Column("files", lambda row: len(row["files"]), wide=True),
    Column("bytes", lambda row: sum(each["size"] for each in row["files"].values()), wide=True),
    Column("run", lambda row: row["lineage"].get("run"), wide=True),
    Column("tags", lambda row: [f"{name}={value}" for name, value in row["tags"].items()], wide=True),
)
_HISTORY = (
    Column("entry", "number"),
    Column("at", "at"),
    Column("actor", "actor"),
    Column("change", lambda row: row["body"].get("kind")),
    Column("version", _version),
    Column("reason", lambda row: row["body"].get("reason"), text=True),
    Column("all that was written", "body", wide=True),
)
