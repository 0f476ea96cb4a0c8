"""Records of runs and their storage: an index journal for each experiment, and segments and artifacts for each run.

A record is folded from the index, and from the segments of logged events that are stored since.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple
from uuid import uuid4

from toque.registry.errors import AlreadyExists, Damaged, NotFound, Unavailable
from toque.registry.journal import Entry, Fold
from toque.registry.models.model_journals import ModelJournals
from toque.registry.models.versions import finite
from toque.registry.names import check_key, check_name
from toque.registry.store import Blob, TableSnapshot
from toque.registry.store.blobs import fetch, sha256_of
from toque.registry.times import from_text, to_text, utc_now

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED", "LOST"]
SCHEMA = "1"
DELETED = "toque.mlflow.deleted"  # tag of what a client of MLflow's protocol deleted
_READ_AT_ONCE = 16  # segments
LOST_AFTER = timedelta(seconds=60)  # without a heartbeat, which comes every ten


class Point(NamedTuple):
    """One value of a metric, with step and time."""

    step: int
    value: float
    at: datetime


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Everything known of a run from the index or its segments.

    metrics: name -> its last value (highest step, then latest); artifacts: path -> content; facts: code
    digest, environment, resources used, parent run and whatever else was recorded once.
    """

    id: str
    experiment: str
    name: str
    status: Status
    actor: str
    started_at: datetime
    ended_at: datetime | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    artifacts: Mapping[str, Blob] = field(default_factory=dict)
    datasets: tuple[TableSnapshot, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Convert the record to JSON values."""
        return {
            "id": self.id,
            "experiment": self.experiment,
            "name": self.name,
            "status": self.status,
            "actor": self.actor,
            "started_at": to_text(self.started_at),
            "ended_at": None if self.ended_at is None else to_text(self.ended_at),
            "params": dict(self.params),
            "metrics": finite(self.metrics),
            "tags": dict(self.tags),
            "artifacts": {path: [blob.sha256, blob.size] for path, blob in self.artifacts.items()},
            "datasets": [[snapshot.name, snapshot.version] for snapshot in self.datasets],
            "facts": finite(self.facts),
        }

    def brief(self) -> dict[str, Any]:
        """Convert the record for the index, without the environment, which is most of the bytes and rarely read."""
        facts = {fact: value for fact, value in self.facts.items() if fact != "environment"}
        return replace(self, facts=facts).to_json()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunRecord:
        """Read a record from the JSON values of `to_json`."""
        ended = data["ended_at"]
        return cls(
            id=data["id"],
            experiment=data["experiment"],
            name=data["name"],
            status=data["status"],
            actor=data["actor"],
            started_at=from_text(data["started_at"]),
            ended_at=None if ended is None else from_text(ended),
            params=data["params"],
            metrics={name: float(value) for name, value in data["metrics"].items()},
            tags=data["tags"],
            artifacts={path: Blob(sha256=sha, size=size) for path, (sha, size) in data["artifacts"].items()},
            datasets=tuple(TableSnapshot(name=name, version=version) for name, version in data["datasets"]),
            facts=data["facts"],
        )


@dataclass(slots=True)
class Segment:
    """Events of one run, buffered and then stored as one object; a tag of None removes the tag."""

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str | None] = field(default_factory=dict)
    points: list[tuple[str, Point]] = field(default_factory=list)
    artifacts: dict[str, Blob] = field(default_factory=dict)
    datasets: list[TableSnapshot] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.params or self.tags or self.points or self.artifacts or self.datasets)

    def to_bytes(self, *, nonce: str = "") -> bytes:
        """Encode the segment as stored, with NaN and infinities as JSON's extensions.

        nonce: makes the bytes unique, so that a writer can tell its own segment from another's.
        """
        names = list(dict.fromkeys(name for name, _ in self.points))
        index = {name: number for number, name in enumerate(names)}
        content = {
            "nonce": nonce,
            "params": self.params,
            "tags": self.tags,
            "names": names,
            "points": [
                [index[name], point.step, point.value, to_text(point.at)] for name, point in self.points
            ],
            "artifacts": {path: [blob.sha256, blob.size] for path, blob in self.artifacts.items()},
            "datasets": [[snapshot.name, snapshot.version] for snapshot in self.datasets],
        }
        return json.dumps(content, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Segment:
        """Read a segment from the bytes of `to_bytes`. Raises: Damaged, naming `where`."""
        try:
            content = json.loads(data)
            names = content["names"]
            return cls(
                params=content["params"],
                tags=content["tags"],
                points=[
                    (names[name], Point(step, value, from_text(at)))
                    for name, step, value, at in content["points"]
                ],
                artifacts={p: Blob(sha256=sha, size=size) for p, (sha, size) in content["artifacts"].items()},
                datasets=[TableSnapshot(name=name, version=version) for name, version in content["datasets"]],
            )
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise Damaged(f"{where} is not readable: {error}") from error


def with_segments(record: RunRecord, segments: Iterable[Segment]) -> RunRecord:
    """Apply the events of segments to a record, in their order."""
    params: dict[str, str] = dict(record.params)
    tags: dict[str, str | None] = dict(record.tags)
    artifacts, datasets = dict(record.artifacts), list(record.datasets)
    last: dict[str, Point] = {}
    for segment in segments:
        params |= segment.params
        tags |= segment.tags
        artifacts |= segment.artifacts
        datasets += segment.datasets
        for name, point in segment.points:
            if name not in last or (point.step, point.at) >= (last[name].step, last[name].at):
                last[name] = point
    return replace(
        record,
        params=params,
        tags={name: value for name, value in tags.items() if value is not None},
        artifacts=artifacts,
        datasets=tuple(dict.fromkeys(datasets)),
        metrics={**record.metrics, **{name: point.value for name, point in last.items()}},
    )


def new_run_id() -> str:
    """Make a run id of 32 hex digits, beginning with the time, so that ids sort by start."""
    return f"{time.time_ns() // 1_000_000:012x}{uuid4().hex[:20]}"


Index = Mapping[str, RunRecord]


def step(index: Index, entry: Entry) -> Index:
    """Apply an entry to an experiment's index: each entry holds one run's current record. Pure."""
    record = RunRecord.from_json(entry.body["run"])
    return {**index, record.id: record}


def encode(index: Index) -> list[dict[str, Any]]:
    """Convert the index to JSON values."""
    return [record.to_json() for record in index.values()]


def decode(data: list[dict[str, Any]]) -> Index:
    """Read an index from the JSON values of `encode`."""
    return {item["id"]: RunRecord.from_json(item) for item in data}


class RunStore(ModelJournals):
    """Reads and writes the records of runs, for `Runs`, `Run` and `RunLog`.

    An experiment is a journal with an entry where a run starts and one where it ends; it is the index that search
    reads. What a run logs in between is stored in segments of its own.
    """

    def index(self, experiment: str) -> Fold[Index]:
        """Follow the index of an experiment's runs: `.refresh()` is one read. Raises: InvalidInput."""
        check_name(experiment, what="experiment")
        return self._follow(
            f"experiments/{experiment}/journal",
            lambda journal: Fold(journal, {}, step, encode=encode, decode=decode, schema=SCHEMA, carry=True),
        )

    def begin(self, record: RunRecord) -> None:
        """Record in the index that a run begins; 2 writes. Used by `start_run` and `RunLog`."""
        index = self.index(record.experiment)
        self.store.create(f"runs/{record.id}/run.json", json.dumps(record.to_json()).encode())
        index.transact(lambda _: {"kind": "started", "run": record.brief()})

    def end(self, record: RunRecord, status: Status) -> RunRecord:
        """Record in the index that a run has ended, with everything in its segments. Used by `Run.finish`."""
        whole = with_segments(record, self.segments(record.id))
        ended = replace(whole, status=status, ended_at=self.clock())

        def decide(index: Index) -> dict[str, Any] | None:
            indexed = index.get(record.id)
            if indexed is not None and indexed.status == status:
                return None
            return {"kind": "ended", "run": ended.brief()}

        self.index(record.experiment).transact(decide)
        return ended

    def get_record(self, run_id: str) -> RunRecord:
        """Read everything known of a run now. Raises: NotFound."""
        started = self._started(run_id)
        indexed = self.index(started.experiment).refresh().get(run_id, started)
        whole = indexed if indexed.status != "RUNNING" else self._live(indexed)
        return replace(whole, facts={**started.facts, **whole.facts})

    def segments(self, run_id: str, start: int = 0) -> Iterator[Segment]:
        """Read a run's segments in order from number `start`.

        Reads until one is missing: one by one first, then in ever larger parallel batches.
        """
        number, batch = start, 1
        with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
            while True:
                keys = [_segment_key(run_id, each) for each in range(number, number + batch)]
                for key, data in zip(keys, pool.map(self.store.find, keys), strict=True):
                    if data is None:
                        return
                    yield Segment.from_bytes(data, key)
                number += batch
                batch = min(_READ_AT_ONCE, number - start)

    def store_segment(self, run_id: str, number: int, data: bytes) -> int:
        """Store a segment's bytes at the first free number from `number` on; returns the number after it.

        The bytes are unique, so a retry that meets its own success recognises it. Used by `Run` and `RunLog`.
        Raises: Unavailable; the same call may be made again.
        """
        while True:
            key = _segment_key(run_id, number)
            try:
                self.store.create(key, data)
            except AlreadyExists:
                if self.store.find(key) != data:
                    number += 1
                    continue
            except Unavailable:
                if self.store.find(key) != data:
                    raise
            return number + 1

    def store_artifact(self, run_id: str, path: str, file: Path) -> Blob:
        """Store the bytes of a file as artifact `path` of a run; the caller records it in a segment.

        Raises: InvalidInput if `path` is not a path below the run.
        """
        blob = Blob(sha256=sha256_of(file), size=file.stat().st_size)
        check_key(path)
        self.store.upload(_artifact_key(run_id, path, blob), file)
        return blob

    def fetch_artifact(self, record: RunRecord, path: str, target: Path) -> Path:
        """Write artifact `path` of a run to the file `target`, its digest checked; returns the file.

        Raises: NotFound; Damaged.
        """
        blob = record.artifacts.get(path)
        if blob is None:
            raise NotFound(f"run {record.id} has no artifact {path!r}")
        fetch(self.store, _artifact_key(record.id, path, blob), blob, target)
        return target

    def beat(self, run_id: str) -> None:
        """Write the heartbeat of the run's owner, by the wall clock even if the registry has another. Used by `Run`."""
        self.store.put(f"runs/{run_id}/heartbeat", to_text(utc_now()).encode())

    def _started(self, run_id: str) -> RunRecord:
        check_name(run_id, what="run id")
        data = self.store.find(f"runs/{run_id}/run.json")
        if data is None:
            raise NotFound(f"run {run_id!r} does not exist")
        return RunRecord.from_json(json.loads(data))

    def _live(self, record: RunRecord) -> RunRecord:
        """Read a running run from its segments; LOST if its heartbeat has stopped.

        A remote run (see `RunLog`) has no heartbeat and is running until its program ends it.
        """
        whole = with_segments(record, self.segments(record.id))
        if record.facts.get("remote"):
            return whole
        beat = self.store.find(f"runs/{record.id}/heartbeat")
        last: datetime | None = None if beat is None else from_text(beat.decode())
        lost = last is None or utc_now() - last > LOST_AFTER
        return replace(whole, status="LOST") if lost else whole


def _segment_key(run_id: str, number: int) -> str:
    return f"runs/{run_id}/segments/{number:06d}.json"


def _artifact_key(run_id: str, path: str, blob: Blob) -> str:
    return f"runs/{run_id}/artifacts/{blob.sha256[:16]}/{PurePosixPath(path).name}"
