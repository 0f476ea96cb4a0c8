"""Table of scores of live answers, each answer once for each rule, and their means with intervals by version and arm."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AwareDatetime, BaseModel, ConfigDict, TypeAdapter

from toque.functions.stats.comparison.betting import betting_cs
from toque.registry import ObjectStore, Table

__all__ = ["KEY", "SCORES", "LiveScore", "ScoreTable", "keep_means", "kept_means", "means", "rule_of"]

_TIME = pa.timestamp("us", tz="UTC")
SCORES: Final = pa.schema(
    [
        pa.field("prediction_id", pa.string(), nullable=False),
        pa.field("version", pa.int64(), nullable=False),
        pa.field("arm", pa.string(), nullable=False),
        pa.field("shadow", pa.bool_(), nullable=False),
        pa.field("predicted_at", _TIME, nullable=False),
        pa.field("scorer", pa.string(), nullable=False),
        pa.field("rule", pa.string(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("scored_at", _TIME, nullable=False),
        pa.field("day", pa.string(), nullable=False),
    ]
)
"""One row an answer and rule. rule: digest of the scorer's settings, so that scores by changed ones do not mix. score: null where the
answer has no text to score. day: of the answer, by which retention removes rows."""
KEY: Final = ("prediction_id", "version", "shadow", "rule")
_COMMITS: Final = "scores"
_MEANS: Final = "score_means/"
"""Objects with the means as the last run found them, one a model; they can be made again from the scores."""
_GRID: Final = 200
_ALPHA: Final = 0.05


class LiveScore(BaseModel):
    """Mean score of the sampled answers of one version in one arm.

    lower, upper: 95 % interval that holds at every look. since, until: times of the first and the last answer.
    """

    model_config = ConfigDict(frozen=True)

    scorer: str
    version: int
    arm: str
    answers: int
    mean: float
    lower: float
    upper: float
    since: AwareDatetime
    until: AwareDatetime


_KEPT: Final = TypeAdapter(list[LiveScore])


def rule_of(settings: BaseModel) -> str:
    """Digest of the settings of a scorer or a judge."""
    text = settings.model_dump_json(exclude_defaults=True)
    return hashlib.sha256(f"{type(settings).__name__} {text}".encode()).hexdigest()[:16]


class ScoreTable:
    """Scores of a model in its store."""

    def __init__(self, store: ObjectStore, model: str) -> None:
        self._table = Table(store, f"scores/{model}")

    def place(self) -> int | None:
        """Number of the newest commit, to be read before what is to be added is worked out."""
        return self._table.transaction(_COMMITS)

    def append(self, rows: Sequence[dict[str, Any]], *, after: int | None) -> None:
        """Add rows in one commit, unless another was made since `place` gave `after`: then none is added."""
        table = pa.Table.from_pylist(list(rows), schema=SCORES)
        self._table.append(
            table,
            partition_by=["day"],
            transactions={_COMMITS: (after or 0) + 1},
            expected={_COMMITS: after},
        )

    def read(self, since: datetime, *, columns: Sequence[str] = SCORES.names) -> pa.Table:
        """Read the scores of answers from the day of `since` on."""
        if not self._table.exists():
            return pa.schema([SCORES.field(name) for name in columns]).empty_table()
        where = pc.field("day") >= since.astimezone(UTC).date().isoformat()
        return self._table.read(columns=columns, where=where)


def means(scores: pa.Table, rules: Collection[str]) -> Iterator[LiveScore]:
    """Average the scores by some rules, by scorer, version and arm.

    The values come in the order in which they were written, so that each look's are those of the last one and more.
    """
    chosen = pc.and_(
        pc.is_in(scores["rule"], pa.array(list(rules), pa.string())), pc.is_valid(scores["score"])
    )
    rows = pl.from_arrow(scores.filter(chosen))
    assert isinstance(rows, pl.DataFrame)  # noqa: S101 - a table is not a column
    ordered = rows.sort("scored_at", "predicted_at", "prediction_id")
    by = ["scorer", "version", "arm"]
    for (scorer, version, arm), group in sorted(ordered.group_by(by, maintain_order=True)):
        found = betting_cs(group["score"].to_numpy(), alpha=_ALPHA, grid=_GRID)
        yield LiveScore(
            scorer=scorer, version=version, arm=arm, answers=found.n, mean=found.mean, lower=found.lower,
            upper=found.upper, since=group["predicted_at"].min(), until=group["predicted_at"].max(),
        )  # fmt: skip


def keep_means(store: ObjectStore, model: str, found: Sequence[LiveScore]) -> None:
    """Keep the means of a model for those who read them often, in place of those before; none: nothing is kept."""
    if found:
        store.put(f"{_MEANS}{model}", _KEPT.dump_json(list(found)))
    else:
        store.delete(f"{_MEANS}{model}")


def kept_means(store: ObjectStore) -> Iterator[tuple[str, list[LiveScore]]]:
    """Iterate over the models whose means are kept."""
    for key in list(store.list(_MEANS)):
        kept = store.find(key)
        if kept is not None:
            yield key.removeprefix(_MEANS), _KEPT.validate_json(kept)
