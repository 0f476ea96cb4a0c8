"""Diagnosis of an alarm: features, slices, upstream tables, versions and incidents, ranked by the loss they explain.

The loss of the rows that an alarm is about is compared with that of the weeks before, and the change split column by column
(`toque.functions.stats.decompose`). The parts of different columns overlap where the columns do: they rank, and do not add up.
Beside that: slices with the worst loss, and features that tell requests from the training set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from toque.functions.evaluation.meanings import BY_REQUEST, Loss
from toque.functions.evaluation.realised_loss import Scored, score
from toque.functions.monitoring.alarms import Alarm
from toque.functions.monitoring.drift.reference import DatasetRows
from toque.functions.monitoring.logged_features import (
    FeatureColumns,
    feature_arrays,
    feature_table,
    has_vector_length,
    sample_rows,
)
from toque.functions.monitoring.quality.watch import Views
from toque.functions.monitoring.results import results_table
from toque.functions.monitoring.settings import Clip
from toque.functions.monitoring.watch import MonitorRun, ReadRows
from toque.functions.stats.decompose import ColumnChange, decompose_change
from toque.functions.stats.multivariate import domain_classifier
from toque.functions.stats.slices import worst_slices
from toque.registry import ModelVersion, Table
from toque.registry.times import epoch_us

Kind = Literal["feature", "slice", "table", "version", "incident"]
_BEYOND_CHANCE = 3.0  # standard errors above which a part is reported
_NEARLY_ALL = 0.95  # of the rows
_SLICES, _MIN_ROWS = 10, 30
MIN_CHANGED_ROWS = 50


class Cause(BaseModel):
    """Change that may have caused an alarm.

    since: when, where that is known. contribution: to the mean loss, of `error`; None: not known.
    """

    model_config = ConfigDict(frozen=True)

    kind: Kind
    what: str
    text: str
    since: AwareDatetime | None = None
    contribution: float | None = None
    error: float | None = None


class Causes(BaseModel):
    """Ranked causes of an alarm, the largest contribution first. rows, loss: labelled, before and in its window."""

    model_config = ConfigDict(frozen=True)

    alarm: Alarm
    before: AwareDatetime
    rows_before: int
    rows: int
    loss_before: float | None = None
    loss: float | None = None
    causes: tuple[Cause, ...] = ()
    text: str


class Changes(BaseModel):
    """Changes that the registry and the journals recorded. champions: versions and when each took over, oldest first.

    code: digest of each version's code. incidents: alarms of data quality, without recoveries.
    """

    model_config = ConfigDict(frozen=True)

    champions: tuple[tuple[int, AwareDatetime], ...] = ()
    code: dict[int, str | None] = {}
    incidents: tuple[Alarm, ...] = ()


def find_causes(
    run: MonitorRun,
    champion: ModelVersion,
    alarm: Alarm,
    changes: Changes,
    views: Views,
    read: ReadRows,
    *,
    before: timedelta,
    loss: Loss,
) -> Causes:
    """Rank what changed between the time before an alarm's window and the window.

    read: predictions with labels and vectors, predicted in [start, end).
    """
    if loss in BY_REQUEST:
        raise ValueError(
            f"causes are sought by row, and loss={loss!r} is of a request: see `toque monitor drift` and the gate's slices"
        )
    logged, began = FeatureColumns.of(champion), alarm.start - before
    rows = read(began, alarm.end)
    rows = rows.filter(pc.and_(pc.invert(rows["shadow"]), has_vector_length(rows, logged)))
    rows = rows.sort_by([("predicted_at", "ascending"), ("prediction_id", "ascending")])
    scored, features = score(rows, loss=loss), feature_table(rows, logged)
    judged = np.isfinite(scored.loss)
    late = judged & (scored.at >= epoch_us(alarm.start))
    early = judged & ~late
    found = Causes(
        alarm=alarm,
        before=began,
        rows_before=int(early.sum()),
        rows=int(late.sum()),
        text="no label is there",
    )
    incidents = [one for one in changes.incidents if one.start < alarm.end]
    if min(found.rows_before, found.rows) < _MIN_ROWS:
        text = f"{found.rows_before} labels before and {found.rows} in the window: {_MIN_ROWS} of each are needed"
        return found.model_copy(
            update={"text": text, "causes": tuple(_incident(one, {}) for one in incidents)}
        )
    columns = [feature_arrays(features.filter(pa.array(side)), logged) for side in (early, late)]
    parts = decompose_change(scored.loss[early], scored.loss[late], *columns)
    mixes = {one.column: one for one in parts}
    causes = [
        *_features(run, parts, alarm),
        *_slices(parts),
        *_tables(views, champion, mixes),
        *_versions(scored, early, late, changes, began),
        *(_incident(one, mixes) for one in incidents),
    ]
    return _ranked(found, causes, float(scored.loss[early].mean()), float(scored.loss[late].mean()))


def _ranked(found: Causes, causes: Sequence[Cause], before: float, after: float) -> Causes:
    """Sort the causes, largest contribution first and unknown ones last, and sum them up in a sentence."""
    ranked = sorted(causes, key=lambda one: (one.contribution is None, -(one.contribution or 0.0)))
    parts_text = (
        f"most of it by {ranked[0].kind} {ranked[0].what}"
        if ranked
        else "nothing that was looked at explains it"
    )
    text = f"the loss went from {before:.4f} to {after:.4f}; {parts_text}"
    return found.model_copy(
        update={"loss_before": before, "loss": after, "causes": tuple(ranked), "text": text}
    )


def _features(run: MonitorRun, parts: Sequence[ColumnChange], alarm: Alarm) -> Iterator[Cause]:
    """Find columns whose values moved beyond chance, or that the drift monitor named."""
    drifted = _drifted_since(run, alarm.end)
    for one in parts:
        if one.column in drifted or abs(one.mix) > _BEYOND_CHANCE * one.error:
            text = f"requests moved to values at which the loss was {'higher' if one.mix > 0 else 'lower'} before"
            yield Cause(
                kind="feature",
                what=one.column,
                text=text,
                since=drifted.get(one.column),
                contribution=one.mix,
                error=one.error,
            )


def _drifted_since(run: MonitorRun, end: datetime) -> dict[str, datetime]:
    """Find since when each column has drifted without a break, up to its last window before `end`."""
    table = Table(run.store, results_table(run.model))
    if not table.exists():
        return {}
    where = (pc.field("monitor") == "drift") & (pc.field("end") <= pa.scalar(end, pa.timestamp("us", "UTC")))
    rows = table.read(columns=["subject", "start", "end", "verdict"], where=where).sort_by("end").to_pylist()
    since: dict[str, datetime] = {}
    for row in rows:
        if row["verdict"] in ("drifted", "vanished"):
            since.setdefault(row["subject"], row["start"])
        elif row["verdict"] == "stable":
            since.pop(row["subject"], None)
    return since


def _slices(parts: Sequence[ColumnChange]) -> list[Cause]:
    """Find cells of columns that lose more than before, beyond chance; a cell of nearly all rows is left out."""
    cells = [cell for one in parts for cell in one.cells if cell.share_after < _NEARLY_ALL]
    worse = [cell for cell in cells if cell.contribution > _BEYOND_CHANCE * cell.error > 0]
    worse.sort(key=lambda cell: -cell.contribution)
    return [
        Cause(
            kind="slice",
            what=cell.name,
            text=f"its loss went from {cell.loss_before:.4f} to {cell.loss_after:.4f} on {cell.share_after:.1%} of the rows",
            contribution=cell.contribution,
            error=cell.error,
        )
        for cell in worse[:_SLICES]
    ]


def _tables(views: Views, champion: ModelVersion, mixes: Mapping[str, ColumnChange]) -> Iterator[Cause]:
    """Find views whose columns moved beyond chance, or whose definition changed since training."""
    digests = views.digests()
    for view, columns in views.columns:
        known = [mixes[name] for name in columns.values() if name in mixes]
        most = max(known, key=lambda one: one.mix, default=None)
        trained_digest = champion.lineage.features.get(view.name)
        changed = trained_digest is not None and digests.get(view.name, trained_digest) != trained_digest
        moved = most is not None and most.mix > _BEYOND_CHANCE * most.error
        if not moved and not changed:
            continue
        parts_text = ["its definition is not the one that was learnt from"] if changed else []
        parts_text += [f"its column {most.column} moved"] if most is not None and moved else []
        yield Cause(
            kind="table",
            what=view.name,
            text="; ".join(parts_text),
            contribution=None if most is None else most.mix,
            error=None if most is None else most.error,
        )


def _versions(scored: Scored, early: Any, late: Any, changes: Changes, began: datetime) -> Iterator[Cause]:
    """Find versions that took over in that time, and how much more their answers lose than before."""
    before, count = float(scored.loss[early].mean()), int(late.sum())
    for (earlier, _), (version, since) in pairwise(changes.champions):
        mine = late & (scored.version == version)
        if since <= began or not mine.any():
            continue
        lost = scored.loss[mine] - before
        same = changes.code.get(earlier) == changes.code.get(version)
        text = (
            f"it answers {mine.sum() / count:.0%} of the requests; "
            f"its code is {'that' if same else 'not that'} of version {earlier}"
        )
        error = float(lost.std() / np.sqrt(len(lost)) * mine.sum() / count)
        yield Cause(
            kind="version",
            what=str(version),
            text=text,
            since=since,
            contribution=float(lost.sum() / count),
            error=error,
        )


def _incident(alarm: Alarm, mixes: Mapping[str, ColumnChange]) -> Cause:
    """Make a cause of an incident, with the largest contribution of the columns that it spoiled."""
    spoiled = [mixes[name] for name in alarm.columns if name in mixes]
    most = max(spoiled, key=lambda one: one.mix, default=None)
    return Cause(
        kind="incident",
        what=alarm.subject,
        text=alarm.text,
        since=alarm.start,
        contribution=None if most is None else most.mix,
        error=None if most is None else most.error,
    )


class SliceOptions(BaseModel):
    """Options of the search for slices."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    days: int = Field(le=36_500, default=28, ge=1, description="Days of predictions, counted back from now.")
    columns: tuple[str, ...] = Field(
        default=(), description="Features that cut slices; all that the model reads if empty."
    )
    loss: Loss = Field(
        default="log_loss",
        description="Loss of an answer against its label; one of a single row, not of a ranking.",
    )
    clip: Clip = 0.01
    cohort: timedelta = Field(
        default=timedelta(days=1),
        gt=timedelta(0),
        description="Length of the windows whose rows count as one observation, since they share their weather.",
    )
    depth: int = Field(default=2, ge=1, le=2, description="Number of columns that a slice may combine.")
    min_rows: int = Field(default=50, ge=2, description="Rows that a slice, and its rest, must have.")
    min_cohorts: int = Field(
        default=10, ge=2, description="Cohorts that a slice, and its rest, must have rows of."
    )
    min_excess: float = Field(
        default=0.0, ge=0, description="Loss above that of the rest up to which a slice is of no interest."
    )
    alpha: float = Field(default=0.05, gt=0, lt=0.5, description="Bound on the chance of any false slice.")
    max_rows: int = Field(
        le=10_000_000,
        default=50_000,
        ge=100,
        description="Rows that are searched; of more, so many are drawn at random.",
    )


class WorstSlice(BaseModel):
    """Slice of requests with a higher loss than the rest.

    where: conditions on features. p: corrected for the search.
    """

    model_config = ConfigDict(frozen=True)

    where: tuple[str, ...]
    rows: int
    loss: float
    rest: float
    p: float
    text: str


class SliceFindings(BaseModel):
    """Slices of a champion's labelled requests that are worse than the rest; rows: labelled, tested: slices."""

    model_config = ConfigDict(frozen=True)

    model: str
    version: int
    rows: int
    tested: int = 0
    loss: float | None = None
    slices: tuple[WorstSlice, ...] = ()
    text: str


class ChangeFindings(BaseModel):
    """Findings on how well requests can be told from the training set. auc: .5 is not at all. p: of so much by chance.

    columns: by which they can be told apart, most telling first. importance: of every column, in AUC.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    version: int
    rows_training: int
    rows: int
    auc: float | None = None
    p: float | None = None
    columns: tuple[str, ...] = ()
    importance: dict[str, float] = {}
    text: str


def find_slices(
    run: MonitorRun, champion: ModelVersion, options: SliceOptions, read: ReadRows
) -> SliceFindings:
    """Search the champion's labelled requests of the last days for slices that are worse than the rest.

    read: predictions with labels, with their vectors, predicted in [start, end).
    """
    if options.loss in BY_REQUEST:
        raise ValueError(
            f"slices are of single rows, and loss={options.loss!r} is of a request: look at the gate's slices"
        )
    logged = FeatureColumns.of(champion)
    rows = read(run.now - timedelta(days=options.days), run.now)
    rows = rows.filter(pc.and_(pc.invert(rows["shadow"]), pc.equal(rows["version"], champion.version)))
    rows = rows.filter(has_vector_length(rows, logged))
    rows = sample_rows(
        rows.sort_by([("predicted_at", "ascending"), ("prediction_id", "ascending")]), options.max_rows
    )
    scored = score(rows, loss=options.loss, clip=options.clip)
    judged = np.isfinite(scored.loss)
    if not judged.any():
        text = f"no labelled answer of version {champion.version} in the last {options.days} days"
        return SliceFindings(model=run.model, version=champion.version, rows=0, text=text)
    kept = logged.select(options.columns)
    features = feature_arrays(feature_table(rows, logged).filter(pa.array(judged)), kept)
    found = worst_slices(
        scored.loss[judged],
        features,
        unit=scored.at[judged] // (options.cohort // timedelta(microseconds=1)),
        depth=options.depth,
        min_rows=options.min_rows,
        min_units=options.min_cohorts,
        min_excess=options.min_excess,
        alpha=options.alpha,
    )
    return SliceFindings(
        model=run.model,
        version=champion.version,
        rows=found.rows,
        tested=found.tested,
        loss=found.mean,
        slices=tuple(
            WorstSlice(
                where=one.where, rows=one.rows, loss=one.mean, rest=one.rest, p=one.corrected, text=one.text
            )
            for one in found.slices
        ),
        text="; ".join(one.text for one in found.slices)
        or f"none of {found.tested} slices is worse than the rest",
    )


def find_changes(
    run: MonitorRun, champion: ModelVersion, read: ReadRows, *, days: int, max_rows: int
) -> ChangeFindings:
    """Learn to tell the requests of the last days from the training set, and name the columns by which it can be done.

    read: logged predictions, with their vectors, in [start, end). max_rows: of either side, at random.
    Raises: ValueError if the version has no training set on record.
    """
    columns = FeatureColumns.of(champion)
    if not champion.lineage.datasets:
        raise ValueError(
            f"{champion.model}@{champion.version} has no training set in its lineage; requests are held against it: "
            "register the version with Lineage(datasets=[…])"
        )
    snapshot = champion.lineage.datasets[0]
    names = [*columns.numeric, *columns.categorical]
    trained = DatasetRows(Table(run.store, snapshot.name), snapshot.version, tuple(names)).sample(max_rows)
    rows = feature_table(read(run.now - timedelta(days=days), run.now), columns)
    requested = sample_rows(rows, max_rows)
    sizes = {"rows_training": trained.num_rows, "rows": requested.num_rows}
    if min(sizes.values()) < MIN_CHANGED_ROWS:
        text = f"{requested.num_rows} requests, {trained.num_rows} training rows: {MIN_CHANGED_ROWS} of each are needed"
        return ChangeFindings(model=run.model, version=champion.version, text=text, **sizes)
    rng = np.random.default_rng(0)  # the same rows give the same answer
    found = domain_classifier(feature_arrays(trained, columns), feature_arrays(requested, columns), rng=rng)
    changed = found.changed()
    what = f"told apart by {', '.join(changed)}" if changed else "not told apart"
    return ChangeFindings(
        model=run.model,
        version=champion.version,
        auc=found.auc,
        p=found.p,
        columns=changed,
        importance=dict(found.importance),
        text=f"requests and training rows are {what}: AUC {found.auc:.3f}, p = {found.p:.2g}",
        **sizes,
    )
