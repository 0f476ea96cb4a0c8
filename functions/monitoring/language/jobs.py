"""Functions that watch language models' live answers: settings, the run on a schedule, and the scores to read.

A run scores what is missing: the sampled answers of the time that it looks back to, less those that the table of scores has, each once
for each rule. Rows that come into the log late are found by the next run, and a run that was killed or met another one has added
whole commits or nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any, Final

import polars as pl
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from toque.functions.arguments import Model
from toque.functions.evaluation.language import Judge, Scorer
from toque.functions.evaluation.language.answer_gate import ScoreAll
from toque.functions.evaluation.language.answering import Pair, calibrated, choices_of
from toque.functions.evaluation.language.judge import Preference, verdict
from toque.functions.evaluation.language.scorers import check_classifier, scores_of
from toque.functions.generative import GenerativeError, is_generative
from toque.functions.generative.engines import scratch_folder
from toque.functions.monitoring.alarms import models_in
from toque.functions.monitoring.language.figures import watch_drift_of_answers
from toque.functions.monitoring.language.sample import (
    LanguageMonitors,
    Sample,
    as_frame,
    monitors_journal,
)
from toque.functions.monitoring.language.scores import KEY, LiveScore, ScoreTable, keep_means, means, rule_of
from toque.functions.monitoring.watch import MonitorResult
from toque.functions.prediction_log import find_labels
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Cron, Resources, Retries
from toque.functions.runtime.declaration.command import View
from toque.functions.runtime.function import function

_JUDGE_THREADS = 1
JUDGE: Final = "judge"
"""Name of the score by which a judge prefers a shadow's answer, 1, or that which the caller got, 0, or neither, 0.5."""
AskJudge = Callable[[Judge, Sequence[Pair]], Sequence[tuple[Preference | None, Preference | None]]]
"""Has a judge choose of each pair, straight and with the answers in each other's place."""
_CHUNK: Final = 2_000
"""Answers of one commit, whose texts are held."""
_JUDGED: Final = 200
"""Pairs of one run, as a judge takes seconds for each."""
_TIE: Final = 0.5
_WORTH: Final[Mapping[Preference, float]] = {"first": 1.0, "second": 0.0, "tie": _TIE}


class LanguageWatch(BaseModel):
    """Result of one run over a language model's live answers. scores, judged: that were added; drift: None if it is not watched."""

    model_config = ConfigDict(frozen=True)

    model: str
    scores: int = 0
    judged: int = 0
    drift: MonitorResult | None = None


@function(http=True, timeout_s=60)
def set_language_monitors(
    model: Model,
    monitors: Annotated[
        LanguageMonitors | None,
        Field(description="What is watched from now on, in place of what was; null ends it."),
    ],
) -> LanguageMonitors | None:
    """Set what is watched of a language model's live answers; returns it.

    Raises: GenerativeError if the model has no version of a language model; EvaluationError if the judge is not known to agree with
    people as it must, or a classifier does not fit its scorer; NotFound.
    """
    used = context()
    registry = used.registry()
    if not any(map(is_generative, registry.get_model(model).versions.values())):
        raise GenerativeError(f"model: {model!r} has no version of a language model; register one first")
    if monitors is not None and monitors.judge is not None:
        calibrated(registry, monitors.judge)
    for scorer in () if monitors is None else monitors.scorers:
        if scorer.kind == "classifier":
            check_classifier(registry, scorer)
    kept = None if monitors is None else monitors.model_dump(mode="json", exclude_defaults=True)
    fold = monitors_journal(used.store, model, actor=used.actor)
    fold.transact(lambda before: {"monitors": kept} if before.monitors != monitors else None)
    return monitors


@function(http=True, role="viewer", timeout_s=60, in_thread=True)
def language_monitors(model: Model) -> LanguageMonitors | None:
    """Read what is watched of a language model's live answers; None: nothing."""
    used = context()
    return monitors_journal(used.store, model, actor=used.actor).refresh().monitors


@function(
    http=True,
    role="viewer",
    timeout_s=60,
    in_thread=True,
    command="monitor scores MODEL",
    view=View(
        columns="scorer | version | arm | answers | mean | from: lower | to: upper",
        wide="first answer: since | last answer: until",
        empty="no answer of {model} is scored: `toque run set_language_monitors` sets scorers, which run every ten minutes",
    ),
)
def live_scores(
    model: Model,
    days: Annotated[
        float,
        Field(gt=0, le=366, description="Days of answers, counted back from now; above 0, at most 366."),
    ] = 30.0,
) -> list[LiveScore]:
    """Average the scores of a language model's live answers of the last days, by scorer, version and arm.

    By the scorers and the judge as they are set now. The intervals hold at every look at the same answers and more: as long as the
    first answer of a version lies within the days.
    """
    monitors = language_monitors(model)
    if monitors is None:
        return []
    rules = [rule_of(each) for each in (*monitors.scorers, *([monitors.judge] if monitors.judge else []))]
    used = context()
    since = used.clock() - timedelta(days=days)
    return list(means(ScoreTable(used.store, model).read(since), rules))


@function(http=True, resources=Resources(num_cpus=1), timeout_s=3600, max_concurrency=1)
def watch_language_model(model: Model) -> LanguageWatch:
    """Score the sampled live answers of a language model that have no score yet, and judge their drift; nothing where nothing is set.

    The means of the versions that are served are kept, for the series of Prometheus.
    Safe to kill, to repeat, and to run twice at once: each answer gets each score once.
    Raises: EvaluationError if the judge no longer agrees with people as it must, or a classifier is gone, after what can be scored was;
    EngineDown if the judge's engine does not start.
    """
    used, monitors = context(), language_monitors(model)
    if monitors is None:
        keep_means(used.store, model, [])
        return LanguageWatch(model=model)
    found, now = used.registry().get_model(model), used.clock()
    policy = found.policy
    sample = monitors.sample(used.store, model, policy, now - monitors.lookback, now)
    score = partial(scores_of, used.registry(), declining=policy.declining)
    by_rules = [each for each in monitors.scorers if each.kind != "classifier"]
    by_models = [each for each in monitors.scorers if each.kind == "classifier"]
    try:
        scores = score_sample(sample, by_rules, score)
        drift = None if monitors.drift is None else watch_drift_of_answers(model, monitors.drift)
        judged = 0 if monitors.judge is None else judge_sample(sample, monitors.judge, _ask)
        scores += score_sample(sample, by_models, score)
    finally:  # one that fails does not hide what the others found
        served = () if found.traffic is None else found.traffic.versions
        keep_means(used.store, model, [each for each in live_scores(model) if each.version in served])
    return LanguageWatch(model=model, scores=scores, judged=judged, drift=drift)


@function(
    http=True,
    resources=Resources(num_cpus=1),
    timeout_s=3600,
    retries=Retries(max_attempts=3),
    max_concurrency=1,
    schedule=Cron("*/10 * * * *", jitter_s=120),
)
def watch_language_models() -> list[LanguageWatch]:
    """Watch the live answers of every language model that has settings for it; one that fails does not stop the others.

    Raises: ExceptionGroup of what failed, at the end.
    """
    done, failed = [], []
    for model in models_in(context().store, "language_monitors"):
        try:
            done.append(watch_language_model(model))
        except Exception as error:  # noqa: BLE001 - one model's failure must not stop the others
            error.add_note(f"while the answers of {model!r} were watched")
            failed.append(error)
    if failed:
        raise ExceptionGroup(f"{len(failed)} language models were not watched", failed)
    return done


def _ask(judge: Judge, pairs: Sequence[Pair]) -> Sequence[tuple[Preference | None, Preference | None]]:
    """Have a judge that agrees with people choose of each pair, by an engine that ends with it."""
    registry = context().registry()
    calibrated(registry, judge)
    with scratch_folder() as folder:
        place = folder / "judge"
        return choices_of(registry, judge, pairs, place, threads=_JUDGE_THREADS, environment=os.environ)


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


__all__ = [
    "JUDGE",
    "AskJudge",
    "LanguageWatch",
    "judge_sample",
    "language_monitors",
    "live_scores",
    "score_sample",
    "set_language_monitors",
    "watch_language_model",
    "watch_language_models",
]
