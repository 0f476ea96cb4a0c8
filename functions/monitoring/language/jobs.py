"""Functions that watch language models' live answers: settings, the run on a schedule, and the scores to read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from functools import partial

from pydantic import BaseModel, ConfigDict

from toque.functions.evaluation.language import Judge
from toque.functions.evaluation.language.classifiers import check_classifier, scores_of
from toque.functions.evaluation.language.judge import Preference
from toque.functions.evaluation.language.judging import Pair, calibrated, choices_of
from toque.functions.generative import GenerativeError, is_generative
from toque.functions.generative.engines import scratch_folder
from toque.functions.monitoring.jobs import watch_answers
from toque.functions.monitoring.language.scores import LiveScore, ScoreTable, keep_means, means, rule_of
from toque.functions.monitoring.language.scoring import judge_sample, score_sample
from toque.functions.monitoring.language.settings import LanguageMonitors, monitors_journal, watched_models
from toque.functions.monitoring.watch import MonitorResult
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Cron, Resources, Retries
from toque.functions.runtime.function import function

__all__ = [
    "LanguageWatch",
    "language_monitors",
    "live_scores",
    "set_language_monitors",
    "watch_language_model",
    "watch_language_models",
]

_JUDGE_THREADS = 1


class LanguageWatch(BaseModel):
    """Result of one run over a language model's live answers. scores, judged: that were added; drift: None if it is not watched."""

    model_config = ConfigDict(frozen=True)

    model: str
    scores: int = 0
    judged: int = 0
    drift: MonitorResult | None = None


@function(http=True, timeout_s=60)
def set_language_monitors(model: str, monitors: LanguageMonitors | None) -> LanguageMonitors | None:
    """Set what is watched of a language model's live answers, in place of what was; None ends it.

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
def language_monitors(model: str) -> LanguageMonitors | None:
    """Read what is watched of a language model's live answers; None: nothing."""
    used = context()
    return monitors_journal(used.store, model, actor=used.actor).refresh().monitors


@function(http=True, role="viewer", timeout_s=60, in_thread=True)
def live_scores(model: str, days: float = 30.0) -> list[LiveScore]:
    """Average the scores of a language model's live answers of the last days, by scorer, version and arm.

    By the scorers and the judge as they are set now. The intervals hold at every look at the same answers and more: as long as the
    first answer of a version lies within the days. Raises: ValueError for days out of range.
    """
    if not 0 < days <= _MOST_DAYS:
        raise ValueError(f"days={days} must lie between 0 and {_MOST_DAYS}")
    monitors = language_monitors(model)
    if monitors is None:
        return []
    rules = [rule_of(each) for each in (*monitors.scorers, *([monitors.judge] if monitors.judge else []))]
    used = context()
    since = used.clock() - timedelta(days=days)
    return list(means(ScoreTable(used.store, model).read(since), rules))


_MOST_DAYS = 366


@function(http=True, resources=Resources(num_cpus=1), timeout_s=3600, max_concurrency=1)
def watch_language_model(model: str) -> LanguageWatch:
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
        drift = None if monitors.drift is None else watch_answers(model, monitors.drift)
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
    for model in watched_models(context().store):
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
