"""Estimates of a model's loss, and of the shares of its classes, before labels arrive.

Of classes, losses come from calibrated confidence (confidence-based performance estimation), shares from black-box shift
estimation. Of numbers and counts, the loss is learnt from the cohorts whose labels are there.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from toque.functions.evaluation.meanings import Loss
from toque.functions.evaluation.outcome_kinds import outcome_kind
from toque.functions.evaluation.realised_loss import score
from toque.functions.monitoring.estimate_monitor import (
    BLIND,
    SHARE_OF,
    SHARES,
    EstimateMonitor,
    EstimateResult,
    EstimateState,
    begun,
    check_estimable,
    compared_with_labels,
    foreseen,
    insufficient,
    watch_cohorts,
)
from toque.functions.monitoring.results import Cohorts
from toque.functions.monitoring.watch import Course, MonitorResult, MonitorRun, ReadRows
from toque.functions.stats.estimate import (
    MOST_CLASSES,
    Calibration,
    ClassSketch,
    Estimate,
    LossModel,
    ScoreSketch,
    estimate_auc,
    estimate_class_losses,
    estimate_losses,
    estimate_shares,
    realise,
    realise_classes,
)
from toque.functions.stats.moments import Floats
from toque.registry import ModelVersion
from toque.registry.times import epoch_us

_SUM_ATOL = 1e-3  # float32 softmax over a thousand classes


@dataclass(frozen=True, slots=True)
class ClassRows:
    """Rows that the champion answered by probabilities, in order of time.

    at: microseconds (n,); probability: (n, 1) of label 1, or (n, classes); label: (n,), NaN where there is none that fits.
    """

    at: npt.NDArray[np.int64]
    probability: Floats
    label: Floats

    @classmethod
    def of(cls, table: pa.Table, version: int, width: int) -> ClassRows:
        """Select the champion's rows of the prediction log, with labels. width: number of values in an answer."""
        own = pc.and_(pc.equal(table["version"], version), pc.invert(table["shadow"]))
        whole = pc.equal(pc.fill_null(pc.list_value_length(table["outputs"]), 0), width)
        rows = table.filter(pc.and_(own, whole))
        rows = rows.sort_by([("predicted_at", "ascending"), ("prediction_id", "ascending")])
        p = _floats(pc.list_flatten(rows["outputs"])).reshape(-1, width)
        label = _floats(rows["label"])
        fits = np.isin(label, np.arange(max(width, 2)))
        at = rows["predicted_at"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
        keep = ((p >= 0) & (p <= 1)).all(axis=1)
        if width > 1:
            keep &= np.abs(p.sum(axis=1) - 1) <= _SUM_ATOL
        return cls(at[keep], p[keep], np.where(fits, label, np.nan)[keep])

    def part(self, which: Any) -> ClassRows:
        """Select rows by a slice, or a mask (n,)."""
        return ClassRows(self.at[which], self.probability[which], self.label[which])


@dataclass(frozen=True, slots=True)
class Binary:
    """Measures of one probability of label 1."""

    clip: float

    def learnt(self, state: EstimateState) -> int:
        """Count the labels that calibrate."""
        return state.labelled.n

    def estimate(self, state: EstimateState, rows: ClassRows, *, calibrated: bool) -> dict[str, Estimate]:
        """Estimate the losses and the AUC of rows without labels; the AUC has no error, which is NaN."""
        p = rows.probability[:, 0]
        c = (state.labelled.calibration() if calibrated else Calibration())(p)
        found = estimate_losses(p, c, clip=self.clip)
        if 0 < c.mean() < 1:
            found["auc"] = Estimate(len(p), estimate_auc(p, c), float("nan"))
        return found

    def shares(self, state: EstimateState, rows: ClassRows) -> dict[str, Estimate]:
        """Estimate the share of label 1, with calls by the share that was seen so far. Raises: ValueError as `estimate_shares`."""
        called = state.labelled.called(rows.probability[:, 0])
        return _of_classes(("0", "1"), estimate_shares(state.labelled.confusion(), called))

    def realise(self, rows: ClassRows) -> dict[str, float]:
        """Compute the losses and shares from the labels."""
        p, y = rows.probability[:, 0], rows.label
        return realise(p, y, clip=self.clip) | _realised_shares(("0", "1"), y)

    def learn(self, state: EstimateState, rows: ClassRows) -> EstimateState:
        """Add labelled rows to the scores that calibrate."""
        labelled = state.labelled + ScoreSketch.of(rows.probability[:, 0], rows.label)
        return state.model_copy(update={"labelled": labelled})


@dataclass(frozen=True, slots=True)
class Several:
    """Measures of one probability for each class. classes: their names."""

    clip: float
    classes: tuple[str, ...]

    def learnt(self, state: EstimateState) -> int:
        """Count the labels that calibrate."""
        if state.classes is None:
            return 0
        return state.classes.by_class[0].n // (len(self.classes) if not state.classes.confusion else 1)

    def estimate(self, state: EstimateState, rows: ClassRows, *, calibrated: bool) -> dict[str, Estimate]:
        """Estimate the losses of calibrated class probabilities."""
        p, learnt = rows.probability, state.classes
        c = learnt.calibrate(p) if calibrated and learnt is not None else p
        return estimate_class_losses(p, c, clip=self.clip)

    def shares(self, state: EstimateState, rows: ClassRows) -> dict[str, Estimate]:
        """Estimate the shares of up to 20 classes, empty for more. Raises: ValueError as `estimate_shares`."""
        if state.classes is None or not state.classes.confusion:
            return {}
        called = np.bincount(rows.probability.argmax(axis=1), minlength=len(self.classes))
        return _of_classes(self.classes, estimate_shares(state.classes.confusion, called))

    def realise(self, rows: ClassRows) -> dict[str, float]:
        """Compute the losses and shares from the labels."""
        return realise_classes(rows.probability, rows.label, clip=self.clip) | _realised_shares(
            self.classes if len(self.classes) <= MOST_CLASSES else (), rows.label
        )

    def learn(self, state: EstimateState, rows: ClassRows) -> EstimateState:
        """Add labelled rows to the probabilities that calibrate."""
        more = ClassSketch.of(rows.probability, rows.label)
        return state.model_copy(update={"classes": more if state.classes is None else state.classes + more})


Measures = Binary | Several
"""What is estimated of the answers of one kind of classifier, and learnt from their labels."""


def estimate(
    state: EstimateState, index: int, rows: ClassRows, monitor: EstimateMonitor, measures: Measures
) -> tuple[EstimateState, list[EstimateResult]]:
    """Estimate cohort `index` from its answers alone: return the state after it and the estimates."""
    after = state.model_copy(update={"next_cohort": index + 1})
    if len(rows.at) < monitor.min_rows:
        return after, []
    learnt = measures.learnt(state)
    calibrated = learnt >= monitor.min_labels
    how = f"calibrated on {learnt} labels" if calibrated else "uncalibrated, too few labels"
    found = measures.estimate(state, rows, calibrated=calibrated)
    auc = found.pop("auc", None)
    if calibrated:
        found = {name: one.learnt_from(learnt) for name, one in found.items()}
    estimates = [foreseen(index, name, one, how) for name, one in found.items()]
    if auc is not None:
        text = f"auc about {auc.mean:.4f} ({how}): {BLIND}"
        estimates.append(EstimateResult(index, "auc", "estimate", auc.n, auc.mean, None, None, text))
    if calibrated:
        try:
            shares = measures.shares(state, rows)
        except ValueError as error:
            estimates.append(insufficient(index, SHARES, len(rows.at), str(error)))
        else:
            estimates += [
                foreseen(index, name, one, f"by {learnt} labelled answers") for name, one in shares.items()
            ]
            found |= shares
    return after.model_copy(update={"pending": state.pending | {index: found}}), estimates


def settle(
    state: EstimateState, index: int, rows: ClassRows, monitor: EstimateMonitor, measures: Measures
) -> tuple[EstimateState, list[EstimateResult]]:
    """Compare the labels of cohort `index` with its estimates: return the state after it and the results."""
    labelled = rows.part(np.isfinite(rows.label))
    pending = {cohort: found for cohort, found in state.pending.items() if cohort > index}
    after = state.model_copy(update={"next_label": index + 1, "pending": pending})
    if not len(labelled.at):
        return after, []
    found = state.pending.get(index, {})
    return measures.learn(after, labelled), [
        compared_with_labels(index, name, found[name], value, len(labelled.at), monitor)
        for name, value in measures.realise(labelled).items()
        if name in found
    ]


def watch_estimates(
    run: MonitorRun, champion: ModelVersion, monitor: EstimateMonitor, read: ReadRows
) -> MonitorResult:
    """Estimate every cohort that has ended, and settle those whose labels are due, without alarms.

    read: predictions beside their labels, unlabelled ones included, predicted in [start, end).
    """
    check_estimable(champion, monitor.loss)
    course, kind = Course(run, champion, monitor), outcome_kind(champion)
    state, grid, due = begun(course), course.grid, course.due
    if state.next_cohort >= due:
        return course.nothing_due(state.next_cohort)
    measures: Measures = (
        Several(monitor.clip, kind.classes) if kind.name == "multiclass" else Binary(monitor.clip)
    )
    first = min(state.next_label, state.next_cohort)
    rows = ClassRows.of(read(grid.start(first), grid.start(due)), champion.version, len(kind.classes) or 1)
    cohorts = {index: rows.part(own) for index, own in grid.slices(rows.at, first, due)}
    return watch_cohorts(
        course,
        state,
        estimate=lambda known, index: estimate(known, index, cohorts[index], monitor, measures),
        settle=lambda known, index: settle(known, index, cohorts[index], monitor, measures),
        nothing="too few answers to estimate",
    )


def _realised_shares(classes: Sequence[str], label: Floats) -> dict[str, float]:
    return _of_classes(classes, [float((label == place).mean()) for place in range(len(classes))])


def _of_classes(classes: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """Name the shares of the classes; of two, that of the second says all."""
    named = {f"{SHARE_OF}{name}": value for name, value in zip(classes, values, strict=True)}
    return dict(list(named.items())[1:]) if len(classes) == 2 else named  # noqa: PLR2004


def _floats(column: pa.ChunkedArray | pa.Array) -> Floats:
    values: Floats = pc.fill_null(column.cast(pa.float64()), float("nan")).to_numpy(zero_copy_only=False)
    return values


@dataclass(frozen=True, slots=True)
class AnsweredRows:
    """Answered rows of the champion in order of time.

    at: microseconds (n,); features: (n, F), the answer first; loss: (n,), NaN without label.
    """

    at: npt.NDArray[np.int64]
    features: Floats
    loss: Floats

    @classmethod
    def of(cls, table: pa.Table, version: int, loss: Loss) -> AnsweredRows:
        """Select the champion's rows of the prediction log, with `numeric` and `categorical`, beside their labels."""
        table = table.sort_by([("predicted_at", "ascending"), ("prediction_id", "ascending")])
        rows = score(table, loss=loss)
        keep = (rows.version == version) & ~rows.shadow & rows.answered
        features = np.column_stack([rows.output, *_numbers(table), *_codes(table)])
        return cls(rows.at[keep], features[keep], rows.loss[keep])

    def between(self, start_us: int, end_us: int, *, labelled: bool = False) -> AnsweredRows:
        """Select the rows of a span of time; with `labelled`, those that have a label."""
        keep = (self.at >= start_us) & (self.at < end_us)
        if labelled:
            keep &= np.isfinite(self.loss)
        return AnsweredRows(self.at[keep], self.features[keep], self.loss[keep])


def _numbers(table: pa.Table) -> Iterator[Floats]:
    """Yield each number of the vectors (n,); NaN where a row's is shorter, or it has none."""
    vectors = table["numeric"].to_pylist()
    for place in range(max((len(one) for one in vectors if one), default=0)):
        yield np.array(
            [one[place] if one and len(one) > place else np.nan for one in vectors], dtype=np.float64
        )


def _codes(table: pa.Table) -> Iterator[Floats]:
    """Yield each text of the vectors as its hash (n,), which does not depend on other rows."""
    vectors = table["categorical"].to_pylist()
    for place in range(max((len(one) for one in vectors if one), default=0)):
        texts = [str(one[place]) if one and len(one) > place else "" for one in vectors]
        yield np.array([zlib.crc32(text.encode()) for text in texts], dtype=np.float64)


def watch_number_estimates(
    run: MonitorRun, champion: ModelVersion, monitor: EstimateMonitor, read: ReadRows
) -> MonitorResult:
    """Estimate the loss of every cohort that has ended, and settle those whose labels are due.

    read: as in `watch_estimates`, with `numeric` and `categorical`. A cohort is estimated from those of `lookback` before it whose labels were
    due when it ended.
    """
    check_estimable(champion, monitor.loss)
    course, memory = Course(run, champion, monitor), -(-monitor.lookback // monitor.cohort)
    state, grid, due = begun(course), course.grid, course.due
    if state.next_cohort >= due:
        return course.nothing_due(state.next_cohort)
    first = min(state.next_label, state.next_cohort)
    rows = AnsweredRows.of(read(grid.start(first - memory), grid.start(due)), champion.version, monitor.loss)

    def estimate_loss(state: EstimateState, index: int) -> tuple[EstimateState, list[EstimateResult]]:
        labelled = _span(rows, grid, state.next_label - memory, state.next_label, labelled=True)
        unlabelled = _span(rows, grid, index, index + 1)
        after = state.model_copy(update={"next_cohort": index + 1})
        if len(unlabelled.at) < monitor.min_rows or len(labelled.at) < monitor.min_labels:
            return after, []
        found = LossModel.fit(labelled.features, labelled.loss).estimate(unlabelled.features)
        pending = state.pending | {index: {monitor.loss: found}}
        how = f"learnt from {len(labelled.at)} labels"
        return after.model_copy(update={"pending": pending}), [foreseen(index, monitor.loss, found, how)]

    def settle_loss(state: EstimateState, index: int) -> tuple[EstimateState, list[EstimateResult]]:
        loss = _span(rows, grid, index, index + 1, labelled=True).loss
        pending = {cohort: found for cohort, found in state.pending.items() if cohort > index}
        after = state.model_copy(update={"next_label": index + 1, "pending": pending})
        expected = state.pending.get(index, {}).get(monitor.loss)
        if expected is None or not len(loss):
            return after, []
        mean = float(loss.mean())
        return after, [compared_with_labels(index, monitor.loss, expected, mean, len(loss), monitor)]

    return watch_cohorts(
        course,
        state,
        estimate=estimate_loss,
        settle=settle_loss,
        nothing="too few answers or labels to estimate",
    )


def _span(rows: AnsweredRows, grid: Cohorts, first: int, end: int, *, labelled: bool = False) -> AnsweredRows:
    return rows.between(epoch_us(grid.start(first)), epoch_us(grid.start(end)), labelled=labelled)
