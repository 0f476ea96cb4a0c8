"""Checks for faults in a cohort of requests; a check that cannot be answered yields nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from toque.functions.monitoring.quality.monitor import (
    JUMP,
    CohortSummary,
    ColumnProfile,
    Fault,
    Incident,
    QualityMonitor,
    QualityState,
    ViewAge,
    jump_of,
)
from toque.functions.stats.drift import compare_rates

_CHANCE = 1e-4  # p-value of a share of nulls above which it is no incident
_GONE_SHARE = 0.95  # share of the usual values that must be missing for a column to be gone, however often nulls were usual
_MAX_USUAL_NULLS = 0.8  # share of nulls in a healthy cohort above which a whole cohort of nulls is no fault
_MAX_VARYING_SHARE = 0.9  # a column varies if its most frequent value never had a larger share
_CONSTANT_SHARE = 0.999
_NO_ROW_S = 1e12  # age of a view without a row: 30,000 years, as no alarm holds infinity


def find_faults(
    state: QualityState, cohort: CohortSummary, monitor: QualityMonitor
) -> Iterator[tuple[str, Incident | None]]:
    """Run every check that can be answered on a cohort; yield its key, and the fault or None."""
    yield from _of_rows(state, cohort, monitor)
    for age in cohort.views:
        yield f"freshness:{age.view}", _stale(age, cohort.index)
    for name, profile in cohort.columns.items():
        if profile.rows >= monitor.min_rows:
            past = [
                one for one in state.history.get(name, ()) if one.index >= cohort.index - 2 * monitor.history
            ]
            yield from _of_column(name, profile, past, state, monitor)


def _of_rows(
    state: QualityState, cohort: CohortSummary, monitor: QualityMonitor
) -> Iterator[tuple[str, Incident | None]]:
    if len(state.volumes) >= monitor.min_history and max(state.volumes) >= monitor.min_rows:
        yield "volume:rows", _wrong_volume(state.volumes, cohort, monitor)
    if cohort.rows < monitor.min_rows:
        return
    shares: tuple[tuple[Fault, int, float, str], ...] = (
        ("schema", cohort.misfit, monitor.max_misfit, "have vectors of another length than the signature"),
        ("duplicates", cohort.duplicates, monitor.max_duplicates, "repeat the id of an earlier one"),
    )
    for fault, count, most, what in shares:
        share = count / cohort.rows
        text = f"{count} of {cohort.rows} rows {what}; at most {most:.1%}"
        yield (
            f"{fault}:rows",
            _incident(fault, "rows", (), text, share, most, cohort.index) if share > most else None,
        )


def _wrong_volume(volumes: Sequence[int], cohort: CohortSummary, monitor: QualityMonitor) -> Incident | None:
    fewest, most = min(volumes) * monitor.min_volume, max(volumes) * monitor.max_volume
    if fewest <= cohort.rows <= most:
        return None
    limit = fewest if cohort.rows < fewest else most
    usual = f"healthy cohorts had {min(volumes)} to {max(volumes)}"
    text = f"{cohort.rows} rows; {usual}, and {limit:.0f} is the {'least' if cohort.rows < fewest else 'most'} allowed"
    return _incident("volume", "rows", (), text, cohort.rows, limit, cohort.index)


def _stale(age: ViewAge, index: int) -> Incident | None:
    if age.age is not None and age.age <= age.most:
        return None
    text = (
        f"view {age.view}: "
        + ("it has no row" if age.age is None else f"the newest row is {age.age} old")
        + f"; at most {age.most}"
    )
    seconds = _NO_ROW_S if age.age is None else age.age.total_seconds()
    return _incident("freshness", age.view, age.columns, text, seconds, age.most.total_seconds(), index)


def _of_column(
    name: str,
    now: ColumnProfile,
    past: Sequence[ColumnProfile],
    state: QualityState,
    monitor: QualityMonitor,
) -> Iterator[tuple[str, Incident | None]]:
    if past:
        yield f"nulls:{name}", _too_many_nulls(name, now, past, monitor)
    if now.present < monitor.min_rows:
        return
    yield f"ranges:{name}", _out_of_range(name, now, monitor)
    if len(past) >= monitor.min_history:
        yield f"constant:{name}", _constant(name, now, past)
        if (
            name in monitor.units
        ):  # a delay jumps tenfold in a storm: without a declared unit that is no fault
            yield from _changed_unit(
                name, now, past, monitor.units[name], already=f"unit:{name}" in state.open
            )


def _too_many_nulls(
    name: str, now: ColumnProfile, past: Sequence[ColumnProfile], monitor: QualityMonitor
) -> Incident | None:
    worst = max(past, key=lambda one: one.null_share)
    usual = worst.null_share
    limit = min(usual + max(monitor.max_null_rise, 2 * usual), usual + _GONE_SHARE * (1 - usual))
    if now.null_share <= limit or usual > _MAX_USUAL_NULLS:
        return None
    if compare_rates((worst.nulls, now.nulls), (worst.rows, now.rows)).p > _CHANCE:
        return None
    text = f"{name}: {now.null_share:.1%} of {now.rows} values are missing; at most {usual:.1%} were"
    return _incident("nulls", name, (name,), text, now.null_share, limit, now.index)


def _out_of_range(name: str, now: ColumnProfile, monitor: QualityMonitor) -> Incident | None:
    share = now.outside / now.present
    if share <= monitor.max_outside:
        return None
    text = f"{name}: {now.outside} of {now.present} values are beyond the declared range or infinite"
    return _incident("ranges", name, (name,), text, share, monitor.max_outside, now.index)


def _constant(name: str, now: ColumnProfile, past: Sequence[ColumnProfile]) -> Incident | None:
    if now.top_share < _CONSTANT_SHARE or max(one.top_share for one in past) > _MAX_VARYING_SHARE:
        return None
    text = f"{name}: {now.top_share:.1%} of {now.present} values are the same; it always varied"
    return _incident("constant", name, (name,), text, now.top_share, _CONSTANT_SHARE, now.index)


def _changed_unit(
    name: str, now: ColumnProfile, past: Sequence[ColumnProfile], unit: str, *, already: bool
) -> Iterator[tuple[str, Incident | None]]:
    """Check for a changed unit; once found, it is over when the values are back."""
    quartiles = [one.quartiles for one in past if one.quartiles]
    jump = jump_of(quartiles, now.quartiles, unit=unit) if now.quartiles and len(quartiles) > 1 else None
    if jump is None:
        return
    if not jump.is_jump or (jump.conversion is None and not already):
        yield f"unit:{name}", None
        return
    conversion = jump.conversion
    what = "another unit" if conversion is None else f"{conversion.source} to {conversion.target}"
    text = (
        f"{name}: unit changed ({what}): its quartiles jumped by {jump.spreads:.1f} spreads between cohorts"
    )
    yield f"unit:{name}", _incident("unit", name, (name,), text, jump.spreads, JUMP, now.index)


def _incident(
    fault: Fault, about: str, columns: tuple[str, ...], text: str, value: float, limit: float, index: int
) -> Incident:
    return Incident(
        fault=fault,
        about=about,
        columns=columns,
        text=text,
        value=value,
        limit=limit,
        since=index,
        seen=index,
    )
