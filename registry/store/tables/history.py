"""Removal of rows from a Delta table and from its whole history: no version, file or log entry keeps them.

The newest version changes by a commit like any other, so concurrent writers see a conflict and followers see the change.
Older versions are then rewritten in place: each names, instead of a file with such rows, a new file without them. So a
snapshot that is named by its version stays readable, less the removed rows. Where a log was cut off (`trim_log`) no
version is named by anybody: it is summed up in a checkpoint of the newest version, and all before it goes. Every step may
be repeated after a kill; a reader that opened the table before may find a file gone and has to open it again.
"""

from __future__ import annotations

import io
import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from toque.registry.errors import AlreadyExists, InvalidInput, Unavailable
from toque.registry.store.tables.files import settle
from toque.registry.store.tables.naming import is_stream, writing_h
from toque.registry.times import backoff_s

if TYPE_CHECKING:
    from toque.registry.store.object_store import ObjectStore
    from toque.registry.store.tables.table import Table


_LOG = "_delta_log/"
_PARALLEL = 8
_ROUNDS = 8
Action = dict[str, Any]


class FilesInProgress(Unavailable):
    """Rows to remove are in files that no version names yet; all others are removed."""


class Choice(Protocol):
    """Rows to remove, and the texts that no entry of the log may keep."""

    def columns(self, schema: pa.Schema) -> list[str]:
        """Names of the columns that `mask` needs, of those in a file."""
        ...

    def mask(self, rows: pa.Table) -> pa.Array | pa.ChunkedArray:
        """Tell for each row whether it goes; partition columns are among the columns, as texts."""
        ...

    def mentions(self, text: str) -> bool:
        """Whether a text of the log holds what must go."""
        ...


@dataclass(frozen=True, slots=True)
class HistoryMatch:
    """Rows to remove in one data file, and the versions (first, last) in which the file is part of the table."""

    path: str
    rows: int
    versions: tuple[tuple[int, int], ...]


def table_names(store: ObjectStore) -> list[str]:
    """List the names of all tables in a store, by its keys."""
    marker = f".delta/{_LOG}"
    found = {key[len("tables/") : key.index(marker)] for key in store.list("tables/") if marker in key}
    return sorted(found)


def find_rows(table: Table, choice: Choice) -> list[HistoryMatch]:
    """Find the files of any version that hold chosen rows; changes nothing. Raises: InvalidInput as `remove_rows`."""
    log = _Log(table)
    return list(log.matches(choice))


def remove_rows(
    table: Table, choice: Choice, *, before: Callable[[Sequence[HistoryMatch]], None] = lambda _: None
) -> None:
    """Remove the chosen rows from every version of a table; returns when no file and no log entry holds them.

    before: called with what is about to be removed, before it is.
    Raises: InvalidInput for a table whose log has gaps or, unless it is a stream's, no longer begins at version 0, or with
    deletion vectors; FilesInProgress if all else is done and a file that no version names holds such rows; Unavailable if
    other writers keep adding such rows.
    """
    for attempt in range(_ROUNDS):
        log = _Log(table)
        matches = list(log.matches(choice))
        if not matches and not log.mentions(choice):
            log.delete_dead()
            if waiting := log.unnamed_matches(choice):
                raise FilesInProgress(
                    f"table {table.name}: {len(waiting)} files, first {waiting[0]}, hold such rows, and no "
                    "version names them: a writer is about to, or was killed. Run it again when it has ended; files that no "
                    f"version names for {writing_h(table.name)} hours are deleted"
                )
            return
        if matches:
            before(matches)
        try:
            log.rewrite(matches, choice)
        except AlreadyExists:
            time.sleep(backoff_s(attempt))
    raise Unavailable(
        f"table {table.name}: rows to remove came back {_ROUNDS} times; run it again when writers rest"
    )


class _Log:
    """Commits of a table and its data files, as they were when this was made."""

    def __init__(self, table: Table) -> None:
        self._table, self._store = table, table.store
        self._root = f"tables/{table.name}.delta/"
        keys = [key[len(self._root) :] for key in self._store.list(self._root)]
        self._logs = [key for key in keys if key.startswith(_LOG)]
        self._data = {key for key in keys if not key.startswith("_") and key.endswith(".parquet")}
        numbers = sorted(int(key[len(_LOG) : -5]) for key in self._logs if _is_commit(key))
        self._is_cut = is_stream(table.name) and bool(numbers) and numbers[0] > 0
        if self._is_cut:
            summed_up = sorted(_number(key) for key in self._logs if key.endswith(".checkpoint.parquet"))
            self._first = next((each for each in summed_up if each >= numbers[0]), 0)
            numbers = [self._first, *(number for number in numbers if number > self._first)]
        else:
            self._first = 0
        if numbers != list(range(self._first, self._first + len(numbers))) or not numbers:
            raise InvalidInput(
                f"table {table.name}: its log has versions {numbers[:1]}…{numbers[-1:]} with gaps, so rows cannot be "
                "removed from its history; write its rows into a new table and delete this one"
            )
        with ThreadPoolExecutor(_PARALLEL) as pool:
            self.commits = list(pool.map(self._read, numbers))

    def _key(self, number: int) -> str:
        return f"{self._root}{_LOG}{number:020d}.json"

    def _read(self, number: int) -> list[Action]:
        """Read the actions of a commit; of the first in a log that was cut off, those of its checkpoint."""
        if self._is_cut and number == self._first:
            data = self._store.get(f"{self._root}{_LOG}{number:020d}.checkpoint.parquet")
            actions = actions_of(_rows_of(data))
        else:
            lines = self._store.get(self._key(number)).decode().splitlines()
            actions = [json.loads(line) for line in lines if line]
        if any((action.get("add") or {}).get("deletionVector") for action in actions):
            raise InvalidInput(
                f"table {self._table.name} has deletion vectors; rewrite its rows with overwrite first"
            )
        return actions

    @property
    def _newest(self) -> int:
        return self._first + len(self.commits) - 1

    def _write(self, number: int, actions: Sequence[Action]) -> None:
        self._store.put(self._key(number), lines(actions))
        self.commits[number] = list(actions)

    def matches(self, choice: Choice) -> Iterator[HistoryMatch]:
        """Read every data file that any version names, and yield those with chosen rows."""
        for path, add in self._adds().items():
            rows = self._chosen(unquote(path), add["partitionValues"], choice)
            if rows:
                yield HistoryMatch(path, rows, tuple(self._lifetimes(path)))

    def _adds(self) -> dict[str, Action]:
        return {
            each["add"]["path"]: each["add"] for actions in self.commits for each in actions if "add" in each
        }

    def _chosen(self, key: str, partition: Mapping[str, str | None], choice: Choice) -> int:
        data = self._store.find(self._root + key)
        if data is None:
            return 0  # vacuumed before
        file = pq.ParquetFile(io.BytesIO(data))
        rows = file.read(columns=choice.columns(file.schema_arrow))
        return int(pc.sum(choice.mask(_with_partition(rows, partition, file.metadata.num_rows))).as_py() or 0)

    def _lifetimes(self, path: str) -> Iterator[tuple[int, int]]:
        """Yield the ranges of versions that a file is part of."""
        begun: int | None = None
        for number, actions in enumerate(self.commits, self._first):
            added = any(action["add"]["path"] == path for action in actions if "add" in action)
            removed = any(action["remove"]["path"] == path for action in actions if "remove" in action)
            if begun is not None and removed and not added:
                yield begun, number - 1
                begun = None
            elif begun is None and added:
                begun = number
        if begun is not None:
            yield begun, self._newest

    def mentions(self, choice: Choice) -> bool:
        """Whether a commit or a checkpoint holds what must go."""
        if any(choice.mentions(json.dumps(each, ensure_ascii=False)) for c in self.commits for each in c):
            return True
        before = [
            key for key in self._logs if _is_commit(key) and _number(key) < self._first
        ]  # of a killed run
        if any(choice.mentions((self._store.find(self._root + key) or b"").decode()) for key in before):
            return True
        checkpoints = (key for key in self._logs if key.endswith(".parquet"))
        return any(choice.mentions(str(_rows_of(self._store.find(self._root + key)))) for key in checkpoints)

    def unnamed_matches(self, choice: Choice) -> list[str]:
        """List the data files that no commit names and that hold chosen rows: a writer is about to commit them, or was killed."""
        return sorted(key for key in self._unnamed() if self._chosen(key, _partition_of(key), choice))

    def _unnamed(self) -> set[str]:
        named = {unquote(path) for path in self._adds()} | {unquote(path) for path in self._removed()}
        return self._data - named

    def _removed(self) -> set[str]:
        return {each["remove"]["path"] for actions in self.commits for each in actions if "remove" in each}

    def rewrite(self, matches: Sequence[HistoryMatch], choice: Choice) -> None:
        """Replace the files of `matches` in all versions. Raises: AlreadyExists if another commit came first."""
        adds = self._adds()
        replaced = {match.path: self._replacement(adds[match.path], choice) for match in matches}
        newest = self._newest
        live = [match.path for match in matches if match.versions[-1][1] == newest]
        if live:
            actions = [commit_info(), *(removal_of(adds[path]) for path in live)]
            actions += [{"add": new} for path in live if (new := replaced[path]) is not None]
            self._store.create(self._key(newest + 1), lines(actions))
            self.commits.append(actions)
        if self._is_cut:
            self._forget_history()
            return
        derived = [
            key for key in self._logs if not _is_commit(key)
        ]  # checkpoints repeat what the commits say
        for key in sorted(
            derived, key=lambda key: "checkpoint." in key
        ):  # the pointer to a checkpoint goes first
            self._store.delete(self._root + key)
        self._rewrite_commits(replaced)
        self.delete_dead()
        for number in range(
            len(self.commits)
        ):  # last: a name that is taken out here says no more which file is dead
            self._change(number, lambda actions: scrubbed(actions, choice))
        if derived:
            self._table.open().create_checkpoint()

    def _forget_history(self) -> None:
        """Sum the log up in a checkpoint, and delete what came before it, and then the files that only older versions have."""
        opened = self._table.open()
        opened.create_checkpoint()
        settle(self._store)  # before what it sums up goes
        named = set(pa.table(opened.get_add_actions(flatten=True)).column("path").to_pylist())
        for key in self._logs:
            if key[len(_LOG) :][:1].isdigit() and _number(key) < opened.version():
                self._store.delete(self._root + key)
        gone = {add for add in self._adds() if add not in named} | self._removed()
        self.commits = [[{"add": each} for path, each in self._adds().items() if path in named]]
        self.commits[0] += [{"remove": {"path": each}} for each in sorted(gone)]
        self.delete_dead()

    def _rewrite_commits(self, replaced: Mapping[str, Action | None]) -> None:
        """Rewrite removals first, newest first, so that no reader in between sees a row twice; then additions."""
        for number in reversed(range(len(self.commits))):
            self._change(number, lambda actions: with_removals(actions, replaced))
        for number in range(len(self.commits)):
            self._change(number, lambda actions: with_additions(actions, replaced))

    def _change(self, number: int, change: Callable[[list[Action]], list[Action]]) -> None:
        changed = change(self.commits[number])
        if changed != self.commits[number]:
            self._write(number, changed)

    def _replacement(self, add: Action, choice: Choice) -> Action | None:
        """Write a data file without its chosen rows; returns the action that adds it, None if no row is left."""
        file = pq.ParquetFile(io.BytesIO(self._store.get(self._root + unquote(add["path"]))))
        rows = file.read()
        mask = choice.mask(_with_partition(rows, add["partitionValues"], rows.num_rows))
        kept = rows.filter(pc.invert(mask))
        if not kept.num_rows:
            return None
        sink = io.BytesIO()
        pq.write_table(kept, sink, compression="snappy")
        folder = unquote(add["path"]).rpartition("/")[0]
        key = f"{folder}/" * bool(folder) + f"part-00000-{uuid.uuid4()}-c000.snappy.parquet"
        self._store.put(self._root + key, sink.getvalue())
        size = len(sink.getvalue())
        return add | {"path": quote(key, safe="/="), "size": size, "stats": stats(add, kept)}

    def delete_dead(self) -> None:
        """Delete data files that no version has any more, and those that killed writers left so long ago that none can be at work."""
        alive = {unquote(path) for path in self._adds()}
        dead = (self._data & {unquote(path) for path in self._removed()}) - alive
        unnamed = self._unnamed() - alive
        if unnamed:
            table = self._table.open()
            old = table.vacuum(
                writing_h(self._table.name), dry_run=True, enforce_retention_duration=False, full=True
            )
            dead |= unnamed & {unquote(path) for path in old} | unnamed & set(old)
        for key in sorted(dead):
            self._store.delete(self._root + key)


def _is_commit(key: str) -> bool:
    name = key[len(_LOG) :]
    return name.endswith(".json") and name[:-5].isdigit()


def _number(key: str) -> int:
    """Version that a commit or a checkpoint is of."""
    return int(key[len(_LOG) :].partition(".")[0])


def _rows_of(data: bytes | None) -> list[Any]:
    rows: list[Any] = [] if data is None else pq.read_table(io.BytesIO(data)).to_pylist()
    return rows


def _with_partition(rows: pa.Table, partition: Mapping[str, str | None], count: int) -> pa.Table:
    for name, value in partition.items():
        rows = rows.append_column(name, pa.array([value] * count, pa.string()))
    return rows


def _partition_of(key: str) -> dict[str, str | None]:
    """Partition values of a data file, by the folders that it lies in."""
    parts = (part.partition("=") for part in key.split("/")[:-1])
    return {name: unquote(value) for name, _, value in parts}


def lines(actions: Iterable[Action]) -> bytes:
    """Encode the actions of one commit as its file's bytes."""
    return "\n".join(
        json.dumps(action, separators=(",", ":"), ensure_ascii=False) for action in actions
    ).encode()


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
    added = {action["add"]["path"] for action in actions if "add" in action}
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
