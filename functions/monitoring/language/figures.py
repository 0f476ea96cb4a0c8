"""Figures of a language model's requests and answers, by which a later time is held against an earlier one.

Of the texts: lengths, languages, whether the model declined; of all: tokens, why the answer ended, the time of the first token, and the
cost where tokens have a price. None of them is a text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import polars as pl
import pyarrow as pa

from toque.functions.generative import declines
from toque.functions.monitoring.language.languages import language_of
from toque.functions.monitoring.language.logged_answers import LoggedAnswer
from toque.functions.monitoring.language.sample import Sample

__all__ = ["FIGURES", "figure_table"]

FIGURES: Final = pa.schema(
    [
        pa.field("predicted_at", pa.timestamp("us", tz="UTC")),
        pa.field("prompt length", pa.float64()),
        pa.field("prompt tokens", pa.float64()),
        pa.field("prompt language", pa.string()),
        pa.field("answer length", pa.float64()),
        pa.field("answer tokens", pa.float64()),
        pa.field("answer language", pa.string()),
        pa.field("declined", pa.string()),
        pa.field("ended by", pa.string()),
        pa.field("first token ms", pa.float64()),
        pa.field("cost", pa.float64()),
    ]
)
"""Columns that are compared, a row an answer. Lengths are in characters: of what was asked last, and of the answer."""
_CHUNK: Final = 2_000
"""Answers whose texts are held."""


def figure_table(sample: Sample, version: int) -> pa.Table:
    """Read the figures of a version's sampled answers to callers, in order of time; without those that no answer has."""
    chosen = sample.answered().filter((pl.col("version") == version) & ~pl.col("shadow"))
    rows = [
        _figures(answer, sample.declining)
        for part in chosen.iter_slices(_CHUNK)
        for answer in sample.read(part).values()
        if answer.version == version and not answer.shadow
    ]
    table = pa.Table.from_pylist(rows, schema=FIGURES).sort_by([("predicted_at", "ascending")])
    return table.select(
        [name for name in table.column_names if table[name].null_count < table.num_rows or not rows]
    )


def _figures(answer: LoggedAnswer, declining: Sequence[str]) -> dict[str, Any]:
    asked, said, message = answer.question, answer.text, answer.message
    prompt_tokens, _, answer_tokens = answer.tokens
    return {
        "predicted_at": answer.predicted_at,
        "prompt length": None if asked is None else len(asked),
        "prompt tokens": _number(prompt_tokens),
        "prompt language": None if asked is None else language_of(asked),
        "answer length": None if said is None else len(said),
        "answer tokens": _number(answer_tokens),
        "answer language": None if said is None else language_of(said),
        "declined": None if message is None else _yes(declines(message, answer.finish_reason, declining)),
        "ended by": answer.finish_reason or None,
        "first token ms": _number(answer.timings_ms[0]),
        "cost": _number(answer.cost),
    }


def _yes(value: Any) -> str:
    return "yes" if value else "no"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
