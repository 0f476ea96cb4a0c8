"""`toque models`: the registry's models and versions, who approved them, and which one is live."""

from __future__ import annotations

from typing import Any

from toque.ray_apps.cli.arguments import (
    EXPECTED_CHAMPION,
    MODEL,
    OVERRIDE,
    REASON,
    VERSION,
    arg,
    limit,
    repeatable,
)
from toque.ray_apps.cli.command import Commands, Given, add, group
from toque.ray_apps.cli.commands.versions import model_files, model_record, signing
from toque.ray_apps.cli.output import columns, listing, message, newest_first, pairs, see_page

_ACCEPT_CODE = repeatable("--accept-code PATH", "a file that can execute code, which you read and accept")
_COMMENT = arg("--comment", "what you found; it stands beside your name", default="")


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    models = group(commands, "models", "List, show, register, approve, sign, promote, download models.")
    add(models, "list", _list, limit(100))
    add(models, "show", _show, MODEL, limit())
    add(models, "history", _history, MODEL, limit())
    add(models, "approve", _approve, MODEL, VERSION, _COMMENT, _ACCEPT_CODE)
    add(models, "reject", _reject, MODEL, VERSION, _COMMENT)
    model_files.register(models)
    model_record.register(models)
    signing.register(models)
    add(models, "promote", _promote, MODEL, VERSION, REASON, EXPECTED_CHAMPION, OVERRIDE)


def _list(given: Given) -> None:
    """List the models, the newest first."""
    found = newest_first(given.client.get("/models"))
    listing(given.output, _MODELS, found, empty="there are no models", limit=given.limit)


def _show(given: Given) -> None:
    """Show a model's versions, the newest first."""
    aliases = given.client.get(f"/models/{given.model}")["aliases"]
    rows = [
        each | {"aliases": [name for name, number in aliases.items() if number == each["version"]]}
        for each in reversed(given.client.get(f"/models/{given.model}/versions"))
    ]
    listing(given.output, _VERSIONS, rows, empty=f"{given.model} has no version", limit=given.limit)
    see_page(given.output, given.client.page("models", given.model))


def _history(given: Given) -> None:
    """Show who changed what, when and why, the newest first."""
    entries = given.client.get(f"/models/{given.model}/history", limit=given.limit + 1)[::-1]
    empty = f"nothing was changed of {given.model}"
    listing(given.output, _HISTORY, entries, empty=empty, limit=given.limit)


def _approve(given: Given) -> None:
    """Approve a version in your own name."""
    _review(given, "approve", "approved", accept_code=given.accept_code)


def _reject(given: Given) -> None:
    """Reject a version in your own name."""
    _review(given, "reject", "rejected")


def _review(given: Given, verb: str, done: str, **more: list[str]) -> None:
    path = f"/models/{given.model}/versions/{given.version}/{verb}"
    version = given.client.send("POST", path, body={"comment": given.comment, **more}).json()
    message(given.output, f"{given.model}@{given.version}: {done}", version)


def _promote(given: Given) -> None:
    """Make a version the champion, and end its canary and shadow."""
    body = {"version": given.version, "reason": given.reason, "override": given.override}
    body |= {} if given.expected is None else {"expected": given.expected}
    version = given.client.send("POST", f"/models/{given.model}/promote", body=body).json()
    message(given.output, f"{given.model}@{given.version} is the champion", version)


def _gates(version: dict[str, Any]) -> list[str]:
    return [
        f"{name} {'passed' if gate['passed'] else 'failed'}{'' if gate.get('demand') else ' by hand'}"
        for name, gate in version["gates"].items()
    ]


def _approvers(version: dict[str, Any]) -> list[str]:
    return [
        f"{one['actor']}{' automatically' if one.get('automatic') else ''}"
        for one in version["approvals"]
        if one["approved"]
    ]


def _version(entry: dict[str, Any]) -> Any:
    """The version that an entry of the journal is about; one that makes a version holds all of it."""
    version = entry["body"].get("version")
    return version["version"] if isinstance(version, dict) else version


_MODELS = columns(
    "model: name | versions | aliases | created: created_at | description",
    wide="tags",
    texts="description",
    values={"versions": lambda row: len(row["versions"]), "aliases": pairs("aliases"), "tags": pairs("tags")},
)
_VERSIONS = columns(
    "version | status | aliases | gates | approved by | author | created: created_at",
    wide="metrics | files | bytes | run: lineage.run | tags",
    texts="gates | approved by",
    values={
        "gates": _gates,
        "approved by": _approvers,
        "files": lambda row: len(row["files"]),
        "bytes": lambda row: sum(each["size"] for each in row["files"].values()),
        "tags": pairs("tags"),
    },
)
_HISTORY = columns(
    "entry: number | at | actor | change | version | reason",
    wide="all that was written: body",
    texts="reason",
    values={
        "change": lambda row: row["body"].get("kind"),
        "version": _version,
        "reason": lambda row: row["body"].get("reason"),
    },
)
