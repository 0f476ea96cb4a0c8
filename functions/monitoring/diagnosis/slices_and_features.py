"""Diagnosis of an alarm: slices with the worst loss, and features that tell requests from the training set."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from toque.functions.evaluation.meanings import BY_REQUEST, Loss
from toque.functions.evaluation.realised_loss import score
from toque.functions.monitoring.drift.dataset_sketches import DatasetRows
from toque.functions.monitoring.logged_features import (
    FeatureColumns,
    feature_arrays,
    feature_table,
    has_vector_length,
    sample_rows,
)
from toque.functions.monitoring.watch import MonitorRun, ReadRows
from toque.functions.stats.multivariate import domain_classifier
from toque.functions.stats.slices import worst_slices
from toque.registry import ModelVersion, Table


class SliceOptions(BaseModel):
    """Options of the search for slices.

    days: of predictions, counted back from now. columns: that cut slices; empty for all that the model reads.
    cohort: rows of one count as one observation, since they share their weather. depth: columns that a slice may combine.
    min_rows, min_cohorts: of a slice and of its rest. min_excess: loss above the rest's that is of interest. alpha: bound on
    the chance of any false slice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    days: int = Field(default=28, ge=1)
    columns: tuple[str, ...] = ()
    loss: Loss = "log_loss"
    clip: float = Field(default=0.01, gt=0, lt=0.5)
    cohort: timedelta = timedelta(days=1)
    depth: int = Field(default=2, ge=1, le=2)
    min_rows: int = Field(default=50, ge=2)
    min_cohorts: int = Field(default=10, ge=2)
    min_excess: float = Field(default=0.0, ge=0)
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    max_rows: int = Field(default=50_000, ge=100)


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
    if min(sizes.values()) < _MIN_ROWS:
        text = (
            f"{requested.num_rows} requests, {trained.num_rows} training rows: {_MIN_ROWS} of each are needed"
        )
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


_MIN_ROWS = 50
