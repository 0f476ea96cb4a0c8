"""`toque models policy`, `card`, `audit`, `made-from` and `origins`: what is recorded of a model, and whether it still stands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from toque.ray_apps.cli.arguments import MODEL, VERSION_OR_ALIAS, arg, limit, read_json
from toque.ray_apps.cli.client import Client, call
from toque.ray_apps.cli.command import Commands, Given, add
from toque.ray_apps.cli.errors import Failed
from toque.ray_apps.cli.output import Column, chosen, columns, facts, listing, message, newest_first, table

if TYPE_CHECKING:
    from toque.registry import TableSnapshot

_SET = arg(
    "--set JSON",
    'the new policy, as in {"guarded": ["champion"], "approvals": 1, "gates": ["offline"]}, @file or -',
)
_SOURCE = arg("source", "TABLE@VERSION, a run's ID, or a digest of code or of a feature view")
_ORIGINS = columns("kind | name | rows | first | last | load | read", texts="read")
_DEPENDENTS = columns("model | version | aliases | serves as: arms | created: created_at")


def register(models: Commands) -> None:
    """Add the commands of this module to the group of models."""
    add(models, "policy", _policy, MODEL, _SET)
    add(models, "card", _card, MODEL, VERSION_OR_ALIAS)
    add(models, "audit", _audit, MODEL)
    add(models, "made-from", _made_from, _SOURCE, limit(100))
    add(models, "origins", _origins, MODEL, arg("version N", "number of a version", type=int))


def source_of(text: str) -> TableSnapshot | str:
    """What a version may be made from: a table as of a version (`TABLE@VERSION`), else an id or digest."""
    from toque.registry import TableSnapshot  # late: it brings the tables, a third of a second

    table_name, at, version = text.rpartition("@")
    return TableSnapshot(name=table_name, version=int(version)) if at and version.isdecimal() else text


def _policy(given: Given) -> None:
    """Show, or set, what a version needs before it may go live."""
    path = f"/models/{given.model}/policy"
    if given.set is None:
        policy = given.client.get(path)
    else:
        policy = given.client.send("PUT", path, body=read_json(given.set)).json()
    facts(given.output, [Column(name.replace("_", " "), name, text=True) for name in policy], policy)


def _card(given: Given) -> None:
    """Print a version's model card, in Markdown."""
    card = given.client.get(f"/models/{given.model}/versions/{given.version}/card")
    message(given.output, card["card"], card)


def _audit(given: Given) -> None:
    """Read a model's whole history and every file; exit code 1 if damaged."""
    found = given.client.send("POST", f"/models/{given.model}/audit").json()
    if found["damaged"]:
        raise Failed(f"{given.model} is damaged: {found['damaged']}")
    read = f"{found['entries']} entries and {found['blobs']} files ({found['size_bytes']} bytes)"
    message(given.output, f"{given.model}: {read} are as they were written", found)


def _made_from(given: Given) -> None:
    """List the versions that depend on a piece of data or code."""
    rows = newest_first(list(_dependents(given.client, source_of(given.source))))
    empty = f"no version was made from {given.source}"
    listing(given.output, _DEPENDENTS, rows, empty=empty, limit=given.limit)


def _origins(given: Given) -> None:
    """Show the data that a version was made from: training sets, feature tables and sources, with what was read of each."""
    asked = {"model": given.model, "version": given.version}
    found = call(given.client, "version_origins", asked)
    nothing = dict.fromkeys(("rows", "first", "last", "load", "read"))
    rows = [nothing | row for each in found["datasets"] for row in _origin_rows(each)]
    empty = f"{given.model}@{given.version} was registered without its data"
    table(chosen(given.output), _ORIGINS, rows, whole=found, remark="" if rows else empty)


def _origin_rows(dataset: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for a training set, for each table that it was joined from, and for each source of those."""
    name, of = _named(dataset["table"]), dataset["training_set"]
    if of is None:
        yield {"kind": "table", "name": name}
        return
    yield {"kind": "training set", "name": name, "rows": of["rows"], "first": of["start"], "last": of["end"]}
    yield {"kind": "entities", "name": _named(of["entities"])}
    for view, snapshot in of["tables"].items():
        yield {"kind": "feature view", "name": view, "read": _named(snapshot)}
    for name, source in of["sources"].items():
        figures = {each: source[each] for each in ("rows", "first", "last", "load")}
        yield {"kind": "batch source", "name": name, "read": _shown(source["read"])} | figures


def _named(snapshot: dict[str, Any]) -> str:
    return f"{snapshot['name']}@{snapshot['version']}"


def _shown(pieces: list[str]) -> str:
    more = len(pieces) - 3
    return ", ".join(pieces[:3]) + (f" and {more} more" if more > 0 else "")


def _dependents(client: Client, source: TableSnapshot | str) -> Iterator[dict[str, Any]]:
    from toque.registry import Lineage  # late: see `source_of`

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
