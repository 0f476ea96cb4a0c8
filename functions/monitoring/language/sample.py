"""Sample of a language model's live answers: which answers are in it, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from toque.functions.monitoring.language.logged_answers import ANSWER_COLUMNS, LoggedAnswer, logged_answers
from toque.functions.prediction_log import predictions
from toque.functions.prediction_log.reading.outcomes import read_columns
from toque.functions.prediction_log.sampling import is_sampled
from toque.registry import ObjectStore

__all__ = ["Sample", "as_frame"]

_IDS = ("prediction_id", "version", "arm", "shadow", "predicted_at")
_MOMENT: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Sample:
    """Sampled answers of a model from `start` to before `end`. declining: patterns of the model's policy."""

    store: ObjectStore
    model: str
    share: float
    start: datetime
    end: datetime
    declining: Sequence[str] = ()

    def answered(self) -> pl.DataFrame:
        """Ids, versions, arms and times of the sampled answers, shadows' included, oldest first."""
        rows = predictions(self.store, self.model, self.start, self.end, columns=(*_IDS, "outputs"))
        rows = rows.filter(pc.is_valid(rows["outputs"])).select(list(_IDS))
        chosen = [is_sampled(each, self.share) for each in rows["prediction_id"].to_pylist()]
        return as_frame(rows.filter(pa.array(chosen, pa.bool_())))

    def read(self, keys: pl.DataFrame) -> dict[tuple[str, int, bool], LoggedAnswer]:
        """Read the answers of some keys, by id, version and whether a shadow gave it."""
        times = keys["predicted_at"].to_list()
        rows = read_columns(
            self.store,
            self.model,
            min(times),
            max(times) + _MOMENT,
            ANSWER_COLUMNS,
            ids=keys["prediction_id"].unique().to_list(),
        )
        found = logged_answers(self.store, self.model, rows)
        return {(each.prediction_id, each.version, each.shadow): each for each in found}


def as_frame(table: pa.Table) -> pl.DataFrame:
    """Convert a table for joins."""
    found = pl.from_arrow(table)
    assert isinstance(found, pl.DataFrame)  # noqa: S101 - a table is not a column
    return found
