"""Totals of a model's answers by minute and version, from which objectives and error budgets are counted.

A file of the log never changes, so its totals are kept under its name and it is read once: rows that come late are a new file, and an
erasure or a merge of small files writes others. There is no watermark that a kill could leave half moved, and of two writers the last
one is as right as the first; deleting what is kept costs one reading of the log. Cells that are two days old are kept by the hour.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from io import BytesIO
from itertools import groupby
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from toque.functions.prediction_log.records import LOAD_TEST, PINNED, predictions_table
from toque.registry.store import ObjectStore, Table
from toque.registry.times import as_utc, epoch_us

if TYPE_CHECKING:
    import pyarrow.dataset as ds

_MINUTE, _HOUR = (timedelta(minutes=minutes) // timedelta(microseconds=1) for minutes in (1, 60))
_BY_THE_MINUTE = timedelta(days=2)
_READ = ("version", "predicted_at", "latency_ms", "outputs")


@dataclass(frozen=True, slots=True)
class AnswerTotals:
    """Answers that users got, by minute (two days ago and before: by hour) and version; none of shadows, load tests, pinned requests.

    cells: start in microseconds since 1970; version; answers; unanswered, those without an output or with one that is not finite; and
    a column for each limit of latency, those that took longer or whose latency is unknown. A cell stands once for each file.
    """

    cells: pl.DataFrame

    def within(
        self, start: datetime, end: datetime, *, slow_ms: float | None, without: int | None = None
    ) -> tuple[int, int]:
        """Count the answers of the cells that begin from the minute of `start` on and before `end`, and the bad ones among them.

        slow_ms: one of the limits, above which an answer is bad; None: one without an output is. without: a version to leave out.
        """
        first = epoch_us(start) // _MINUTE * _MINUTE
        cells = self.cells.filter(
            pl.col("start").is_between(first, epoch_us(end), closed="left"),
            pl.lit(value=True) if without is None else pl.col("version") != without,
        )
        bad = "unanswered" if slow_ms is None else _slow(slow_ms)
        return int(cells["answers"].sum()), int(cells[bad].sum())


def answer_totals(
    store: ObjectStore, model: str, start: datetime, end: datetime, *, slow_ms: Collection[float] = ()
) -> AnswerTotals:
    """Total the logged answers of a model over the days (UTC) from `start` to `end`; only files that were not totalled yet are read.

    slow_ms: limits of latency to count by.
    """
    key = f"answer_totals/{model}.arrow"
    kept = store.find(key)
    cells = _empty(slow_ms) if kept is None else pl.read_ipc(kept)
    if not {*map(float, slow_ms)} <= {
        *_limits(cells)
    }:  # a new limit: all is counted again, by the former ones too
        cells = _empty({*slow_ms, *_limits(cells)})
    table = Table(store, predictions_table(model))
    if not table.exists():
        return AnswerTotals(cells.clear())
    log = table.dataset()
    cells = cells.filter(pl.col("file").is_in(log.files))
    first, last = (as_utc(at).date().isoformat() for at in (start, end))
    totalled = set(cells["file"].unique())
    new = [
        file
        for file in log.get_fragments((pc.field("day") >= first) & (pc.field("day") <= last))
        if file.path not in totalled
    ]
    for _, of_a_day in groupby(
        new, lambda file: str(file.path).rpartition("/")[0]
    ):  # a kill costs one day's reading
        cells = pl.concat([cells, *(_total(file, log.schema, _limits(cells)) for file in of_a_day)])
        cells = _by_the_hour(cells, before=end - _BY_THE_MINUTE)
        content = BytesIO()
        cells.write_ipc(content, compression="zstd")
        store.put(key, content.getvalue())
    return AnswerTotals(cells)


def _total(file: ds.ParquetFileFragment, schema: pa.Schema, limits: Collection[float]) -> pl.DataFrame:
    """Total one file of the log; a cell without answers says that it was read."""
    shown = (pc.field("arm") != LOAD_TEST) & (pc.field("arm") != PINNED) & ~pc.field("shadow")
    finite = pl.col("outputs").list.eval(pl.element().is_finite().fill_null(value=False)).list.all()
    bad = {"unanswered": ~(finite & (pl.col("outputs").list.len() > 0))}
    bad |= {_slow(limit): ~(pl.col("latency_ms").cast(pl.Float64) <= limit) for limit in limits}
    cells = [pl.DataFrame([[0]] * len(_empty(limits).columns[1:]), _empty(limits).drop("file").schema)]
    for batch in file.to_batches(schema=schema, columns=list(_READ), filter=shown):
        rows = pl.DataFrame(batch).select(
            (pl.col("predicted_at").dt.epoch("us") // _MINUTE * _MINUTE).alias("start"),
            "version",
            pl.lit(1, pl.Int64).alias("answers"),
            *(is_bad.fill_null(value=True).cast(pl.Int64).alias(name) for name, is_bad in bad.items()),
        )
        cells.append(rows.group_by("start", "version").sum())
    named = pl.concat(cells).select(pl.lit(file.path).alias("file"), pl.all())
    return named.group_by("file", "start", "version").sum()


def _by_the_hour(cells: pl.DataFrame, *, before: datetime) -> pl.DataFrame:
    """Sum the cells of hours that are over before a time, by the hour."""
    hour = pl.col("start") // _HOUR * _HOUR
    old = hour + _HOUR <= epoch_us(before)
    start = pl.when(old).then(hour).otherwise(pl.col("start"))
    return (
        cells.with_columns(start).group_by("file", "start", "version").sum().sort("file", "start", "version")
    )


def _empty(limits: Collection[float]) -> pl.DataFrame:
    return pl.DataFrame(
        schema={"file": pl.String}
        | dict.fromkeys(("start", "version", "answers", "unanswered", *map(_slow, sorted(limits))), pl.Int64)
    )


def _slow(limit_ms: float) -> str:
    return f"slow_{float(limit_ms)!r}"


def _limits(cells: pl.DataFrame) -> list[float]:
    return [float(name.removeprefix("slow_")) for name in cells.columns if name.startswith("slow_")]
