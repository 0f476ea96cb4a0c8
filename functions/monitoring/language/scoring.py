"""Scores a sample of a language model's live answers, each answer once for each rule.

A run adds what is missing: the sampled answers of the time that it looks back to, less those that the table of scores has. Rows that
come into the log late are found by the next run, and a run that was killed or met another one has added whole commits or nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import polars as pl
import pyarrow as pa

from toque.functions.evaluation.language import Judge, Scorer
from toque.functions.evaluation.language.answer_gate import ScoreAll
from toque.functions.evaluation.language.judge import Preference, verdict
from toque.functions.evaluation.language.judging import Pair
from toque.functions.monitoring.language.sample import Sample, as_frame
from toque.functions.monitoring.language.scores import KEY, ScoreTable, rule_of
from toque.functions.prediction_log import find_labels

__all__ = ["JUDGE", "AskJudge", "judge_sample", "score_sample"]

JUDGE: Final = "judge"
"""Name of the score by which a judge prefers a shadow's answer, 1, or that which the caller got, 0, or neither, 0.5."""
AskJudge = Callable[[Judge, Sequence[Pair]], Sequence[tuple[Preference | None, Preference | None]]]
"""Has a judge choose of each pair, straight and with the answers in each other's place."""

_CHUNK: Final = 2_000
"""Answers of one commit, whose texts are held."""
_JUDGED: Final = 200
"""Pairs of one run, as a judge takes seconds for each."""


def score_sample(sample: Sample, scorers: Sequence[Scorer], score: ScoreAll) -> int:
    """Score the sampled answers that have no score yet by a scorer; returns the number of scores that were added.

    score: scores several answers by one of them. Raises: PredictionLogError if a large value of the log is gone; as `score`.
    """
    rules = {rule_of(each): each for each in scorers}
    table, added = ScoreTable(sample.store, sample.model), 0
    while rules:
        place = (
            table.place()
        )  # before the scores are read: what another run adds meanwhile keeps this one's out
        candidates, expected = _candidates(sample, rules)
        missing = _without(candidates, table.read(sample.start, columns=KEY))
        if missing.is_empty():
            return added
        part = missing.filter(pl.col("answer") < missing["answer"].item(0) + _CHUNK)
        rows = _scored(sample, part, rules, expected, score)
        table.append(rows, after=place)
        if table.place() == (place or 0) + 1:
            added += len(rows)
    return added


def judge_sample(sample: Sample, judge: Judge, ask: AskJudge) -> int:
    """Have a judge compare shadows' answers that have no score by it yet with what callers got; returns the number of scores added.

    At most 200 pairs are asked; the next run goes on. Answers that are equal are a tie, and are not asked.
    Raises: as `ask`.
    """
    table = ScoreTable(sample.store, sample.model)
    place = table.place()
    answered = sample.answered()
    live = answered.filter(~pl.col("shadow")).select("prediction_id", pl.col("version").alias("live"))
    shadows = answered.filter(pl.col("shadow")).join(live, on="prediction_id", maintain_order="left")
    candidates = shadows.with_columns(pl.lit(rule_of(judge)).alias("rule"))
    part = _without(candidates, table.read(sample.start, columns=KEY)).head(_JUDGED)
    if part.is_empty():
        return 0
    rows = _judged(sample, part, lambda pairs: ask(judge, pairs))
    table.append(rows, after=place)
    return len(rows) if table.place() == (place or 0) + 1 else 0


def _judged(
    sample: Sample,
    part: pl.DataFrame,
    ask: Callable[[Sequence[Pair]], Sequence[tuple[Preference | None, Preference | None]]],
) -> list[dict[str, Any]]:
    answers = sample.read(part)
    scores: dict[int, float] = {}
    pairs: dict[int, Pair] = {}
    keys = part.to_dicts()
    for at, each in enumerate(keys):
        own = answers.get((each["prediction_id"], each["version"], True))
        other = answers.get((each["prediction_id"], each.pop("live"), False))
        if own is None or other is None or own.text is None or other.text is None:
            continue
        if own.text == other.text:
            scores[at] = _TIE
        else:
            pairs[at] = Pair(own.question or "", own.text, other.text)
    if pairs:
        choices = ask(list(pairs.values()))
        scores |= {at: _WORTH[verdict(*both)] for at, both in zip(pairs, choices, strict=True)}
    return [score_row(each, JUDGE, scores.get(at), sample.end) for at, each in enumerate(keys)]


_TIE: Final = 0.5
_WORTH: Final[Mapping[Preference, float]] = {"first": 1.0, "second": 0.0, "tie": _TIE}


def _candidates(sample: Sample, rules: Mapping[str, Scorer]) -> tuple[pl.DataFrame, dict[str, str]]:
    """Each sampled answer with each rule that it can be scored by, numbered by answer; and the expected texts by id."""
    answered = sample.answered().with_row_index("answer").cast({"answer": pl.Int64})
    expected = {}
    if any(each.needs_expected for each in rules.values()):
        expected = _expected(sample, answered["prediction_id"].unique().to_list())
    labelled = answered.filter(pl.col("prediction_id").is_in(list(expected)))
    parts = [
        (labelled if each.needs_expected else answered).with_columns(pl.lit(rule).alias("rule"))
        for rule, each in rules.items()
    ]
    return pl.concat(parts).sort("answer", maintain_order=True), expected


def _expected(sample: Sample, ids: Sequence[str]) -> dict[str, str]:
    """Labels in force that are texts, by prediction id."""
    labels = find_labels(sample.store, ids, since=sample.start)
    content = zip(labels["prediction_id"].to_pylist(), labels["content"].to_pylist(), strict=True)
    return {each: json.loads(text) for each, text in content if text is not None and text.startswith('"')}


def _without(candidates: pl.DataFrame, scored: pa.Table) -> pl.DataFrame:
    return candidates.join(as_frame(scored), on=list(KEY), how="anti", maintain_order="left")


def _scored(
    sample: Sample,
    part: pl.DataFrame,
    rules: Mapping[str, Scorer],
    expected: Mapping[str, str],
    score: ScoreAll,
) -> list[dict[str, Any]]:
    """Rows of the table of scores for candidates. An answer without a text has a score of null, so that it is not read again."""
    answers = sample.read(part)
    keys = part.drop("answer").to_dicts()
    texts: dict[str, dict[int, str]] = {rule: {} for rule in rules}
    for at, each in enumerate(keys):
        answer = answers.get((each["prediction_id"], each["version"], each["shadow"]))
        if answer is not None and answer.text is not None:
            texts[each["rule"]][at] = answer.text
    scores: dict[int, float] = {}
    for rule, said in texts.items():
        wanted = [expected.get(keys[at]["prediction_id"], "") for at in said]
        scores |= dict(zip(said, score(rules[rule], list(said.values()), wanted), strict=True))
    return [
        score_row(each, rules[each["rule"]].label, scores.get(at), sample.end) for at, each in enumerate(keys)
    ]


def score_row(key: Mapping[str, Any], scorer: str, score: float | None, now: datetime) -> dict[str, Any]:
    """Row of the table of scores. key: id, version, arm, shadow, time and rule of the answer."""
    day = key["predicted_at"].astimezone(UTC).date().isoformat()
    return {**key, "scorer": scorer, "score": score, "scored_at": now, "day": day}
