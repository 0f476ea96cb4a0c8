"""Settings by which a language model's live answers are watched, and the sample of them that is looked at.

The settings are one a model, in a journal of its own. A sample knows which answers are in it, what was asked and said, and what it took.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Self

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, model_validator

from toque.functions.evaluation.language import Judge, Scorer
from toque.functions.monitoring.drift.answers import AnswerMonitor
from toque.functions.prediction_log import predictions
from toque.functions.prediction_log.reading.logged_tensors import large_values, tensor_values
from toque.functions.prediction_log.reading.outcomes import read_columns
from toque.functions.prediction_log.records import is_sampled
from toque.registry import Fold, Journal, ModelPolicy, ObjectStore

_IDS = ("prediction_id", "version", "arm", "shadow", "predicted_at")
_MOMENT: Final = timedelta(microseconds=1)
ANSWER_COLUMNS = (
    "prediction_id", "version", "arm", "shadow", "predicted_at", "categorical", "tensors", "day",
)  # fmt: skip
"""Columns of the log that `logged_answers` needs."""


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


@dataclass(frozen=True, slots=True)
class LoggedAnswer:
    """Answer of a language model to one request.

    asked: messages, or a text, as they were sent; None if they were not kept. message: of the assistant, as of OpenAI's API; None
    if it was not kept, and of embeddings. tokens: of the prompt, of those that were cached, and of the answer; timings_ms: until
    the first token, and between two; cost: by the price of its tokens. NaN where one is not in the log.
    """

    prediction_id: str
    version: int
    arm: str
    shadow: bool
    predicted_at: datetime
    asked: Any
    message: Mapping[str, Any] | None
    finish_reason: str
    tokens: tuple[float, float, float]
    timings_ms: tuple[float, float]
    cost: float

    @property
    def text(self) -> str | None:
        """Text that was answered; None if it was not kept, or there is none, as of a call of tools."""
        content = None if self.message is None else self.message.get("content")
        return content if isinstance(content, str) else None

    @property
    def question(self) -> str | None:
        """Text that was asked last; None if it was not kept."""
        if isinstance(self.asked, str):
            return self.asked
        asked = [
            each.get("content")
            for each in self.asked or ()
            if isinstance(each, dict) and each.get("role") == "user"
        ]
        return _plain(asked[-1]) if asked else None


def logged_answers(store: ObjectStore, model: str, rows: pa.Table) -> Iterator[LoggedAnswer]:
    """Iterate over the answers of rows with `ANSWER_COLUMNS`; rows without an answer are left out.

    Raises: PredictionLogError if a large value is gone.
    """
    large = large_values(store, model, rows)
    for row in rows.select(list(ANSWER_COLUMNS)).to_pylist():
        if row["tensors"]:
            yield _answer(row, large)


def _answer(row: Mapping[str, Any], large: Mapping[tuple[str, str], bytes]) -> LoggedAnswer:
    found = tensor_values(row["tensors"], row["prediction_id"], large, output=True)
    message = _text(found, "message")
    tokens, timings = found.get("tokens"), found.get("timings_ms")
    return LoggedAnswer(
        prediction_id=row["prediction_id"],
        version=row["version"],
        arm=row["arm"],
        shadow=row["shadow"],
        predicted_at=row["predicted_at"],
        asked=_parsed((row["categorical"] or [None])[0]),
        message=_parsed(message),
        finish_reason=_text(found, "finish_reason") or "",
        tokens=_numbers(tokens, 3),
        timings_ms=_numbers(timings, 2),
        cost=_numbers(found.get("cost"), 1)[0],
    )


def _text(found: Mapping[str, Any], name: str) -> str | None:
    value = found.get(name)
    item = None if value is None or not value.size else value.ravel()[0]
    return None if item is None else str(item.decode("utf-8", "replace"))


def _numbers(value: Any, count: int) -> Any:
    flat: Sequence[float] = () if value is None else value.ravel().astype(float).tolist()
    return tuple(flat) if len(flat) == count else (math.nan,) * count


def _parsed(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except json.JSONDecodeError:  # cut off, or of another kind of model
        return None


def _plain(content: Any) -> str | None:
    """Text of a message's content, which may be a list of parts."""
    if isinstance(content, str):
        return content
    parts = [each.get("text") for each in content or () if isinstance(each, dict)]
    texts = [each for each in parts if isinstance(each, str)]
    return "\n".join(texts) if texts else None


class LanguageMonitors(BaseModel):
    """What is watched of a language model's live answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = Field(
        default=0.1,
        gt=0.0,
        le=1.0,
        description="Share of the answers that is looked at, chosen by a hash of their ids.",
    )
    scorers: tuple[Scorer, ...] = Field(
        default=(),
        max_length=20,
        description="Scorers of single answers; those that need an expected text wait for a label that is one.",
    )
    judge: Judge | None = Field(
        default=None,
        description="Judge that compares the answers of shadows with what callers were answered; none unless given.",
    )
    lookback: timedelta = Field(
        default=timedelta(days=1),
        gt=timedelta(0),
        le=timedelta(days=31),
        description="How long after an answer it is still scored, and a label waited for; at most 31 days.",
    )
    drift: AnswerMonitor | None = Field(
        default=AnswerMonitor(),
        description="Monitor of drift of what is asked and answered; null: not watched.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [each.label for each in self.scorers] + (["judge"] if self.judge is not None else [])
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"scorers: {twice} are named twice; give each a name")
        if any(each.kind == "likelihood" for each in self.scorers):
            raise ValueError(
                "scorers: kind='likelihood' is not a score of answers that were given; leave it out"
            )
        return self

    def sample(
        self, store: ObjectStore, model: str, policy: ModelPolicy, start: datetime, end: datetime
    ) -> Sample:
        """Sample the model's answers in [start, end): where the policy has the log keep fewer texts, of those that have theirs."""
        return Sample(store, model, self.share_of(policy), start, end, policy.declining)

    def share_of(self, policy: ModelPolicy) -> float:
        """Share of the model's answers that is looked at: no larger than that of which the log keeps the texts."""
        return min(self.share, policy.keep_texts) or self.share


class _Setting(BaseModel):
    """What a journal of settings comes to. monitors: None before the first entry, and where watching was ended."""

    model_config = ConfigDict(frozen=True)

    monitors: LanguageMonitors | None = None


def monitors_journal(store: ObjectStore, model: str, *, actor: str) -> Fold[_Setting]:
    """Open the settings of a model, and what they were before."""
    return Fold(
        Journal(store, f"language_monitors/{model}", actor=actor),
        _Setting(),
        lambda _, entry: _Setting.model_validate(entry.body),
        encode=_Setting.model_dump_json,
        decode=_Setting.model_validate_json,
    )


__all__ = [
    "ANSWER_COLUMNS",
    "LanguageMonitors",
    "LoggedAnswer",
    "Sample",
    "as_frame",
    "logged_answers",
    "monitors_journal",
]
