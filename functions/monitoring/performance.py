"""Performance monitor: realised loss of what is served, cohort by cohort, against the loss at validation.

Of each cohort of predictions, once its labels had time to arrive, the monitor asks:
- loss: is the mean loss above the one recorded at validation?
- surprise: is it above the loss that the model's own probabilities lead to expect (their entropy)? A day that is hard and
  was called hard surprises nobody; a model that no longer fits is surprised however easy the days are.
- overstated, understated: do its probabilities, or its rates of counts, lie above, or below, what came true? Such a model may lose little by it and
  still be worth retraining.

One bad day is weather; a run of them is a model that no longer fits. Each mean is set against its baseline in units of
how much cohorts vary by themselves, held within two and a half of them, and summed up (CUSUM). How much they vary is learned from
differences of cohorts a few apart, which a lasting rise does not inflate and slow weather does not deflate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from toque.functions.evaluation.meanings import Loss
from toque.functions.evaluation.realised_loss import Scored, score
from toque.functions.monitoring.results import CohortState
from toque.functions.monitoring.settings import LabelMonitor, Lookback
from toque.functions.monitoring.watch import Course, MonitorResult, MonitorRun, ReadRows
from toque.functions.stats import ClusterSums, Cusum, PageHinkley
from toque.functions.stats.estimate import auc_with_error
from toque.registry import ModelVersion

Measure = Literal["loss", "surprise", "overstated", "understated"]
MEASURES: tuple[Measure, ...] = ("loss", "surprise", "overstated", "understated")

_LAG = 3  # distance in cohorts of the two means of a difference: neighbours are too alike
_MAX_DIFFERENCES = 28  # differences that the state keeps
_MIN_DIFFERENCES = 5  # fewest differences from which the spread is estimated
_UNKNOWN_SPREAD = 3.0  # with fewer, the spread is so many of the cohort's own standard errors
_MAX_SPREADS = 2.5  # one cohort adds at most this many spreads
_Z_95 = 1.96  # half width of a 95 % interval, in standard errors
_MEDIAN_TO_SD = 0.954  # median |x − y| of independent standard normals


class PerformanceMonitor(LabelMonitor):
    """Settings of the performance monitor.

    Where acting on an answer changes its label (a warned customer leaves earlier), a holdout is answered and not acted
    upon, and its labels alone are unbiased: `arms=("holdout",)`.
    """

    kind: Literal["performance"] = Field(default="performance", description="Kind of the monitor.")
    lookback: Lookback = timedelta(days=28)
    arms: tuple[str, ...] = Field(default=(), description="Arms whose answers count, by name; all if empty.")
    loss: Loss = Field(default="log_loss", description="Loss of an answer against its label.")
    min_labels: int = Field(
        default=30, ge=2, description="Labelled rows below which a cohort is insufficient and not judged."
    )
    min_label_share: float = Field(
        default=0.3,
        gt=0,
        lt=1,
        description="Share of requests with a label below which a cohort is insufficient and not judged.",
    )
    measures: tuple[Measure, ...] = Field(
        default=MEASURES,
        description=(
            "What is asked of a cohort: is its loss above the baseline, is it a surprise, "
            "is the outcome overstated or understated."
        ),
    )
    baseline: tuple[str, ...] = Field(
        default=(
            "valid_log_loss",
            "val_log_loss",
            "log_loss",
            "mse",
            "deviance",
            "ndcg_loss",
            "cosine_distance",
            "edit_distance",
        ),
        description=(
            "Names of the version's metrics that may hold its loss at "
            "validation; the first that exists counts."
        ),
    )
    baseline_cohorts: int = Field(
        le=100_000,
        default=7,
        ge=2,
        description="First cohorts served that make the baseline of the loss, where no metric of the version does.",
    )
    min_rise: float = Field(
        default=0.0,
        ge=0,
        description="Rise of a measure over its baseline that is of no interest, in its own unit.",
    )
    detector: Literal["cusum", "page_hinkley"] = Field(
        default="cusum",
        description=(
            "How cohorts are summed up: `cusum` against the baseline, which is quickest, "
            "or `page_hinkley` against the mean so far."
        ),
    )
    shift: float = Field(
        default=1.0,
        gt=0,
        description="Rise that the detector is to find soonest, in spreads between cohorts.",
    )
    threshold: float = Field(
        default=6.0,
        gt=0,
        description="Level of the detector above which it alarms, in spreads between cohorts.",
    )

    @property
    def wait(self) -> timedelta:
        """Time after a cohort's end from which it is judged."""
        return self.label_delay


class Cohort(BaseModel):
    """Cohort of predictions of one version.

    requests: answered. sums: of each measure over labelled rows, clustered by unit.
    """

    model_config = ConfigDict(frozen=True)

    index: int
    requests: int
    sums: dict[Measure, ClusterSums]

    @classmethod
    def of(cls, index: int, rows: Scored) -> Self:
        """Sum the rows of one cohort."""
        labelled = rows.where(np.isfinite(rows.loss))
        units = labelled.unit.astype(str)
        sums: dict[Measure, ClusterSums] = {"loss": ClusterSums.of(labelled.loss, units)}
        foreseen = np.isfinite(labelled.expected)
        if foreseen.any():  # one probability a row
            seen = labelled.where(foreseen)
            sums["surprise"] = ClusterSums.of(seen.loss - seen.expected, units[foreseen])
        calibrated = np.isfinite(labelled.bias)
        if calibrated.any():  # a probability, or the rate of a count
            bias = labelled.bias[calibrated]
            sums["overstated"] = ClusterSums.of(bias, units[calibrated])
            sums["understated"] = ClusterSums.of(-bias, units[calibrated])
        return cls(index=index, requests=int(rows.answered.sum()), sums=sums)


class Track(BaseModel):
    """State of the detector of one measure.

    baseline: None until known. early: cohort means collected for it. recent: the last few means.
    differences: of means a few cohorts apart. level: of the detector; memory: what a detector other than CUSUM keeps beside it.
    """

    model_config = ConfigDict(frozen=True)

    baseline: float | None = None
    early: tuple[float, ...] = ()
    recent: tuple[float, ...] = ()
    differences: tuple[float, ...] = ()
    level: float = 0.0
    memory: dict[str, Any] = {}


class PerformanceState(CohortState):
    """State of the performance monitor for one champion."""

    version: int
    tracks: dict[Measure, Track]

    @classmethod
    def begin(cls, version: int, next_cohort: int, *, validated_loss: float | None) -> Self:
        """Make the state before the first cohort.

        All measures but the loss are 0 on average where the model is calibrated.
        """
        tracks: dict[Measure, Track] = {measure: Track(baseline=0.0) for measure in MEASURES}
        tracks["loss"] = Track(baseline=validated_loss)
        return cls(version=version, next_cohort=next_cohort, tracks=tracks)

    def on_grid(self, moved: Callable[[int], int]) -> Self:
        """Keep the baselines, which are means over rows; how much cohorts vary is learnt anew."""
        tracks = {measure: Track(baseline=track.baseline) for measure, track in self.tracks.items()}
        return self.model_copy(update={"next_cohort": moved(self.next_cohort), "tracks": tracks})

    def of_version(self, version: int, *, validated_loss: float | None) -> Self:
        """Make the state for a new champion: its own baseline and a fresh CUSUM; the traffic varies as it did."""
        fresh = type(self).begin(version, self.next_cohort, validated_loss=validated_loss)
        tracks = {
            measure: track.model_copy(update={"differences": self.tracks.get(measure, Track()).differences})
            for measure, track in fresh.tracks.items()
        }
        return fresh.model_copy(update={"tracks": tracks})


class Verdict(BaseModel):
    """Verdict of one measure on one cohort.

    z: rise over the baseline in spreads; level: of the CUSUM, before a reset.
    """

    model_config = ConfigDict(frozen=True)

    measure: Measure
    kind: Literal["ok", "alarm", "insufficient", "baseline"]
    text: str
    labels: int
    mean: float | None = None
    baseline: float | None = None
    z: float | None = None
    level: float | None = None


def judge(
    state: PerformanceState, cohort: Cohort, monitor: PerformanceMonitor
) -> tuple[PerformanceState, tuple[Verdict, ...]]:
    """Judge a cohort: return the state after it, and the verdict of each measure."""
    tracks, verdicts = dict(state.tracks), []
    for measure in monitor.measures:
        track = state.tracks.get(measure, Track(baseline=0.0))
        sums = cohort.sums.get(measure, ClusterSums())
        thin = _too_few_labels(sums, cohort.requests, monitor)
        if thin is not None:
            verdicts.append(Verdict(measure=measure, kind="insufficient", text=thin, labels=sums.rows))
            continue
        tracks[measure], verdict = _update_track(track, measure, sums, monitor)
        verdicts.append(verdict)
    after = state.model_copy(update={"tracks": tracks, "next_cohort": cohort.index + 1})
    return after, tuple(verdicts)


def _too_few_labels(sums: ClusterSums, requests: int, monitor: PerformanceMonitor) -> str | None:
    if sums.rows < monitor.min_labels:
        return f"{sums.rows} labels of {requests} predictions; {monitor.min_labels} are needed"
    if sums.rows < monitor.min_label_share * requests:
        return f"{sums.rows} of {requests} predictions have a label; {monitor.min_label_share:.0%} are needed"
    if sums.clusters < 2:  # noqa: PLR2004 — for a spread
        return "all labels are of one unit"
    return None


def _update_track(
    track: Track, measure: Measure, sums: ClusterSums, monitor: PerformanceMonitor
) -> tuple[Track, Verdict]:
    mean = sums.mean
    spread = _spread(track.differences, sums.standard_error())
    track = _with_recent(track, mean)
    if track.baseline is None:
        return _collect_baseline(track, measure, sums, monitor)
    z = min((mean - track.baseline - monitor.min_rise) / spread, _MAX_SPREADS)
    alarm, level, left = _run_detector(track, z, monitor)
    text = (
        f"{measure} {mean:.4f} against {track.baseline:.4f}: {z:+.1f} spreads of {spread:.4f}; "
        f"{_NAMES[monitor.detector]} {level:.1f} of {monitor.threshold}"
    )
    verdict = Verdict(
        measure=measure,
        kind="alarm" if alarm else "ok",
        text=text,
        labels=sums.rows,
        mean=mean,
        baseline=track.baseline,
        z=z,
        level=level,
    )
    return track.model_copy(update=left), verdict


_NAMES = {"cusum": "CUSUM", "page_hinkley": "Page-Hinkley"}


def _run_detector(track: Track, z: float, monitor: PerformanceMonitor) -> tuple[bool, float, dict[str, Any]]:
    """Update the detector with a cohort's rise `z`: whether it fires, its level before a reset, and its new fields."""
    if monitor.detector == "cusum":
        level = max(0.0, track.level + z - monitor.shift / 2)
        cusum = Cusum(0.0, 1.0, monitor.shift, monitor.threshold, level=track.level).update([z])
        return cusum.alarm, level, {"level": cusum.level}
    # Its mean is over all cohorts so far: a fall, too, is held within what one cohort may say.
    detector = PageHinkley(monitor.shift / 2, monitor.threshold, _MIN_DIFFERENCES, **track.memory)
    after = detector.update([max(z, -_MAX_SPREADS)])
    kept = {name: getattr(after, name) for name in ("n", "seen", "mean", "total", "lowest")}
    return after.alarm, after.total - after.lowest, {"level": after.total - after.lowest, "memory": kept}


def _spread(differences: Sequence[float], error: float) -> float:
    """Estimate how much a cohort's mean varies by itself, at least its own standard error."""
    floor = max(error, 1e-9)
    if len(differences) < _MIN_DIFFERENCES:
        return floor * _UNKNOWN_SPREAD
    return max(floor, float(np.median(differences)) / _MEDIAN_TO_SD)


def _with_recent(track: Track, mean: float) -> Track:
    differences = track.differences
    if len(track.recent) == _LAG:
        differences = (*differences, abs(mean - track.recent[0]))[-_MAX_DIFFERENCES:]
    return track.model_copy(update={"recent": (*track.recent, mean)[-_LAG:], "differences": differences})


def _collect_baseline(
    track: Track, measure: Measure, sums: ClusterSums, monitor: PerformanceMonitor
) -> tuple[Track, Verdict]:
    early = (*track.early, sums.mean)
    baseline = float(np.mean(early)) if len(early) >= monitor.baseline_cohorts else None
    text = f"cohort {len(early)} of {monitor.baseline_cohorts} for the baseline"
    verdict = Verdict(measure=measure, kind="baseline", text=text, labels=sums.rows, mean=sums.mean)
    return track.model_copy(update={"early": early, "baseline": baseline}), verdict


def watch_loss(
    run: MonitorRun, champion: ModelVersion, monitor: PerformanceMonitor, read: ReadRows
) -> MonitorResult:
    """Judge every cohort whose labels are due.

    read: predictions beside their labels, unlabelled ones included, predicted in [start, end).
    """
    course = Course(run, champion, monitor)
    state, grid, due, last = _begun(course), course.grid, course.due, ""
    first = state.next_cohort
    if first >= due:
        return course.nothing_due(first)
    rows = score(read(grid.start(first), grid.start(due)), loss=monitor.loss, clip=monitor.clip)
    rows = rows.where((rows.version == champion.version) & ~rows.shadow)
    for index, own in grid.slices(rows.at, first, due):
        mine = rows.where(np.arange(own.start, own.stop))
        cohort = Cohort.of(index, mine)
        state, verdicts = judge(state, cohort, monitor)
        if cohort.requests:
            for verdict in verdicts:
                _tell(course, index, verdict)
            _measure(course, index, mine)
            last = "; ".join(verdict.text for verdict in verdicts)
    return course.conclude(state, range(first, due), last)


def _begun(course: Course[PerformanceMonitor]) -> PerformanceState:
    version, metrics = course.champion.version, course.champion.metrics
    validated = next((metrics[name] for name in course.monitor.baseline if name in metrics), None)
    state = course.load(PerformanceState)
    if state is None:
        return PerformanceState.begin(version, course.begin, validated_loss=validated)
    return state if state.version == version else state.of_version(version, validated_loss=validated)


def _tell(course: Course[PerformanceMonitor], index: int, verdict: Verdict) -> None:
    """Add the finding of a measure on a cohort, and its alarm if there is one."""
    figures: dict[str, Any] = {
        "text": verdict.text,
        "statistic": verdict.level,
        "threshold": course.monitor.threshold,
    }
    course.find(
        verdict.measure,
        verdict.kind,
        index,
        rows=verdict.labels,
        value=verdict.mean,
        reference=verdict.baseline,
        **figures,
    )
    if verdict.kind == "alarm":
        name = f"{verdict.measure}/{course.champion.version}/{index}"
        course.alarm(name, verdict.measure, index, **figures)


def _measure(course: Course[PerformanceMonitor], index: int, rows: Scored) -> None:
    """Measure AUC and calibration with intervals, where each row has one probability and enough have labels.

    The figures are on record and not judged: `surprise`, `overstated` and `understated` are.
    """
    known = np.isin(rows.label, (0.0, 1.0)) & np.isfinite(rows.expected)
    if known.sum() < course.monitor.min_labels:
        return
    label, p = rows.label[known], rows.output[known]
    gap = p - label
    figures = {"calibration": (float(gap.mean()), float(gap.std(ddof=1) / np.sqrt(len(gap))))}
    ranked = auc_with_error(label, p)
    if ranked is not None:
        figures["auc"] = ranked
    for name, (value, error) in figures.items():
        low, high = value - _Z_95 * error, value + _Z_95 * error
        text = f"{name} {value:.4f}, 95 % interval {low:.4f} to {high:.4f}"
        course.find(name, "measured", index, rows=len(label), value=value, statistic=error, text=text)
