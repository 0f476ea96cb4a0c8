"""Actions of a Delta table's log, as JSON values, and how a commit is rewritten when files are replaced."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from toque.registry.errors import InvalidInput

if TYPE_CHECKING:
    from toque.registry.store.tables.history import Choice

Action = dict[str, Any]


def lines(actions: Iterable[Action]) -> bytes:
    """Encode the actions of one commit as its file's bytes."""
    return "\n".join(json.dumps(each, separators=(",", ":"), ensure_ascii=False) for each in actions).encode()


def actions_of(rows: Iterable[Mapping[str, Any]]) -> list[Action]:
    """Read the actions of a checkpoint's rows, each in the column of its kind, as a commit would have them."""
    found: list[Action] = []
    for row in rows:
        for kind, body in row.items():
            if body is not None:
                given = {name: value for name, value in body.items() if value is not None}
                if "partitionValues" in given:
                    given["partitionValues"] = dict(given["partitionValues"])
                found.append({kind: given})
    return found


def commit_info() -> Action:
    """Describe a commit that removes rows, without saying which."""
    now_ms = int(time.time() * 1_000)
    return {
        "commitInfo": {
            "timestamp": now_ms,
            "operation": "DELETE",
            "operationParameters": {},
            "engineInfo": "toque",
        }
    }


def removal_of(add: Action) -> Action:
    """Build the action that removes the file that `add` added."""
    now_ms = int(time.time() * 1_000)
    return {
        "remove": {
            "path": add["path"],
            "deletionTimestamp": now_ms,
            "dataChange": True,
            "extendedFileMetadata": True,
            "partitionValues": add["partitionValues"],
            "size": add["size"],
        }
    }


def with_removals(actions: list[Action], replaced: Mapping[str, Action | None]) -> list[Action]:
    """Remove, beside each replaced file, the one that replaces it; not where this commit adds that one."""
    added = {each["add"]["path"] for each in actions if "add" in each}
    found = list(actions)
    for each in actions:
        new = replaced.get(each["remove"]["path"]) if "remove" in each else None
        if new is not None and new["path"] not in added:
            found.append({"remove": each["remove"] | {"path": new["path"], "size": new["size"]}})
    return found


def with_additions(actions: list[Action], replaced: Mapping[str, Action | None]) -> list[Action]:
    """Add, in place of each replaced file, the one that replaces it, if there is one."""
    found: list[Action] = []
    for each in actions:
        if "add" not in each or each["add"]["path"] not in replaced:
            found.append(each)
        elif (new := replaced[each["add"]["path"]]) is not None:
            found.append(
                {"add": new | {name: each["add"][name] for name in ("modificationTime", "dataChange")}}
            )
    return found


def scrubbed(actions: list[Action], choice: Choice) -> list[Action]:
    """Take what must go out of the rest of a commit: its parameters, bounds of columns, names of partition folders."""
    found: list[Action] = []
    for each in actions:
        (kind, body), *_ = each.items()
        if not choice.mentions(json.dumps(each, ensure_ascii=False)):
            found.append(each)
        elif kind == "commitInfo":
            found.append({kind: {name: body[name] for name in ("timestamp", "operation") if name in body}})
        elif kind == "add" and not choice.mentions(json.dumps(body | {"stats": ""}, ensure_ascii=False)):
            found.append({kind: body | {"stats": json.dumps({"numRecords": _count(body)})}})
        elif kind != "remove":
            raise InvalidInput(
                f"a {kind} action of the log holds what must go; rewrite the table with overwrite"
            )
    return found


def _count(add: Action) -> int:
    return int(json.loads(add.get("stats") or "{}").get("numRecords") or 0)


def stats(add: Action, kept: pa.Table) -> str:
    """Statistics of a file's remaining rows: their number, and the bounds of its times, which still hold."""
    before = json.loads(add.get("stats") or "{}")
    times = {field.name for field in kept.schema if pa.types.is_temporal(field.type)}
    bounds = {
        side: {name: value for name, value in before.get(side, {}).items() if name in times}
        for side in ("minValues", "maxValues")
    }
    nulls = {name: kept.column(name).null_count for name in bounds["minValues"]}
    return json.dumps({"numRecords": kept.num_rows, **bounds, "nullCount": nulls})
