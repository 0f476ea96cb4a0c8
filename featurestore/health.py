"""Health of a view: freshness, share of values present, share of keys online, and its newest rows.

Sizes come from the table's log; the rest from the newest span of rows, read in batches.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from toque.featurestore.applied.definitions import ViewOrName
from toque.featurestore.definitions.expectations import missing
from toque.featurestore.definitions.fields import EVENT_TIMESTAMP
from toque.featurestore.definitions.views import FeatureView
from toque.featurestore.offline.versions import Version
from toque.featurestore.online.keys import row_keys
from toque.featurestore.online.materialize import Materializer
from toque.featurestore.online.serving import Status
from toque.featurestore.store import FeatureStore
from toque.featurestore.windows.distinct import DistinctSketch
from toque.registry.times import from_epoch_us

DAY = timedelta(days=1)
_ROWS_AT_ONCE = 200_000
PERSONAL = "personal"
"""Tag of a view that names, with commas, its features and keys that are personal; their values are not shown."""
MASKED = "(personal)"


class ViewHealth(BaseModel):
    """Measured health of one view.

    rows, files: of the table's newest version; newest_event: of rows up to now; freshness_s: its age;
    recent_rows: in the span that ends with it, on which `keys` (distinct, within 1.6 %), `fill` (share of values
    present, by feature) and `samples` (the newest rows, personal values masked) are measured; coverage: share of sampled recent keys that an online
    read finds within the ttl, None without an online store; online_until: event time up to which rows are materialized.
    """

    model_config = ConfigDict(frozen=True)

    view: str
    owner: str = ""
    measured_at: datetime
    ttl_s: float | None = None
    rows: int = 0
    files: int = 0
    newest_event: datetime | None = None
    freshness_s: float | None = None
    recent_rows: int = 0
    keys: int = 0
    fill: dict[str, float] = {}
    coverage: float | None = None
    online_until: datetime | None = None
    samples: list[dict[str, Any]] = []


def view_health(
    fs: FeatureStore, view: ViewOrName, *, span: timedelta = DAY, samples: int = 3, sampled_keys: int = 1_000
) -> ViewHealth:
    """Measure a view's health as of now.

    span: how much of the newest event time is read; sampled_keys: how many online rows are looked up.
    Raises: UnknownDefinition, OnlineStoreUnavailable.
    """
    found = fs.get_feature_view(view if isinstance(view, str) else view.name)
    now = fs.now()
    ttl_s = None if found.ttl is None else found.ttl.total_seconds()
    health = ViewHealth(view=found.name, owner=found.owner, measured_at=now, ttl_s=ttl_s)
    version = fs.offline.version(found)
    if version is None:
        return health
    recent = _Recent(found, samples=samples)
    for batch in recent_rows(fs, found, version, span=span, now=now):
        recent.add(batch, fs.project)
    return health.model_copy(
        update={
            "rows": sum(f.rows for f in version.files),
            "files": len(version.files),
            "newest_event": recent.newest,
            "freshness_s": None if recent.newest is None else (now - recent.newest).total_seconds(),
            "recent_rows": recent.rows,
            "keys": round(recent.keys.estimate()),
            "fill": recent.fill(),
            "samples": [_masked(found, row) for row in recent.samples],
        }
        | (_online(fs, found, recent.last, sampled_keys) if fs.has_online else {})
    )


def newest_event(fs: FeatureStore, view: ViewOrName) -> datetime | None:
    """Find the event time of a view's newest row up to now; None without rows. Raises: UnknownDefinition."""
    found = fs.get_feature_view(view if isinstance(view, str) else view.name)
    version = fs.offline.version(found)
    return None if version is None else _newest(fs, found, version, now=fs.now())


def recent_rows(
    fs: FeatureStore, view: FeatureView, version: Version, *, span: timedelta, now: datetime
) -> Iterator[pa.Table]:
    """Iterate over rows of the newest span up to now, in batches, oldest files first."""
    newest = _newest(fs, view, version, now=now)
    if newest is None:
        return
    start = newest - span
    files = [f for f in version.files if f.may_hold(start, now)]
    for batch, _ in fs.offline.batches(view, version, files, start=start, end=now, rows=_ROWS_AT_ONCE):
        if batch.num_rows:
            yield batch


def _newest(fs: FeatureStore, view: FeatureView, version: Version, *, now: datetime) -> datetime | None:
    begun = [f.first for f in version.files if f.first is not None and f.first <= now]
    if not begun:
        return None
    newest = max(begun)  # a file has a row at its first time, so the newest row is not earlier
    files = [f for f in version.files if f.may_hold(newest, now)]
    for batch, _ in fs.offline.batches(view, version, files, start=newest, end=now, rows=_ROWS_AT_ONCE):
        newest = max(newest, pc.max(batch.column(EVENT_TIMESTAMP)).as_py() or newest)
    return newest


def _masked(view: FeatureView, row: dict[str, Any]) -> dict[str, Any]:
    hidden = {name.strip() for name in view.tags.get(PERSONAL, "").split(",")}
    return {name: MASKED if name in hidden else value for name, value in row.items()}


class _Recent:
    """Running totals over batches of a view's rows."""

    def __init__(self, view: FeatureView, *, samples: int) -> None:
        self._view = view
        self._wanted = samples
        self._missing = dict.fromkeys(view.features, 0)
        self.rows = 0
        self.newest: datetime | None = None
        self.keys = DistinctSketch.of(pa.array([], pa.string()))
        self.last: pa.Table | None = None
        self._newest_rows: pa.Table | None = None

    def add(self, batch: pa.Table, project: str) -> None:
        """Add a batch to the totals."""
        self.rows += batch.num_rows
        for name in self._missing:
            self._missing[name] += missing(batch.column(name))
        self.keys += DistinctSketch.of(pa.array(row_keys(project, self._view, batch)).cast(pa.string()))
        ends = pc.max(batch.column(EVENT_TIMESTAMP)).as_py()
        self.newest = ends if self.newest is None else max(self.newest, ends)
        self.last = batch
        both = batch if self._newest_rows is None else pa.concat_tables([self._newest_rows, batch])
        self._newest_rows = both.sort_by([(EVENT_TIMESTAMP, "descending")]).slice(0, self._wanted)

    def fill(self) -> dict[str, float]:
        """Share of values present, by feature."""
        return {name: 1 - count / self.rows for name, count in self._missing.items()} if self.rows else {}

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Newest rows of all batches, as dicts."""
        return [] if self._newest_rows is None else self._newest_rows.to_pylist()


def _online(fs: FeatureStore, view: FeatureView, rows: pa.Table | None, sampled_keys: int) -> dict[str, Any]:
    claim = Materializer(fs.offline, fs.online).claimed(view)
    until = None if claim is None else from_epoch_us(claim.end_us)
    if rows is None:
        return {"online_until": until}
    at = np.unique(np.linspace(0, rows.num_rows - 1, min(sampled_keys, rows.num_rows)).astype(np.int64))
    keys = rows.select([key.name for key in view.join_keys]).take(pa.array(at)).to_pylist() or [{}]
    answer = fs.get_online_features(view, keys)
    states = answer.statuses[view.features[0]]
    readable = sum(state in {Status.PRESENT, Status.NULL_VALUE} for state in states)
    return {"online_until": until, "coverage": readable / len(states)}
