"""Scores of live answers: a sample that every run draws alike, each answer once by each rule, whatever is killed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.functions.monitoring.language.conftest import MODEL, Talk
from toque.functions.evaluation import EvaluationError
from toque.functions.evaluation.language import Judge, Scorer
from toque.functions.generative import GenerativeError
from toque.functions.monitoring.language import LanguageMonitors, jobs
from toque.functions.monitoring.language.jobs import (
    judge_sample,
    language_monitors,
    live_scores,
    set_language_monitors,
    watch_language_model,
    watch_language_models,
)
from toque.functions.monitoring.language.sample import Sample
from toque.functions.monitoring.language.scores import ScoreTable, kept_means
from toque.functions.prediction_log.records import is_sampled
from toque.functions.runtime import use_context
from toque.registry import ModelPolicy, Table

JSON, SHORT, EXACT = Scorer(kind="json"), Scorer(kind="length", max_length=10), Scorer()
ALL = LanguageMonitors(share=1.0, scorers=(JSON, SHORT, EXACT), drift=None)


def test_a_sample_is_the_same_for_all_and_a_smaller_one_is_part_of_a_larger() -> None:
    names = [f"chatcmpl-{number}" for number in range(20_000)]
    tenth, fifth = ({each for each in names if is_sampled(each, share)} for share in (0.1, 0.2))
    assert tenth < fifth
    # 4 standard errors of a share
    assert abs(len(tenth) / 20_000 - 0.1) < 4 * np.sqrt(0.09 / 20_000)
    assert all(is_sampled(each, 1.0) for each in names)
    assert not any(is_sampled(each, 0.0) for each in names)
    assert [is_sampled(name, 0.5) for name in "abcdefgh"] == [True, True, True, True, False, True, True, True]


def test_each_sampled_answer_is_scored_once_by_each_scorer_and_late_rows_by_the_next_run(talk: Talk) -> None:
    with use_context(talk.context()):
        set_language_monitors(MODEL, ALL)
        talk.say("p1", '{"a": 1}')
        talk.say("p2", "a text that is long", version=2, arm="canary")
        talk.say("p3", None)
        talk.drain()
        talk.later(1)
        assert watch_language_model(MODEL).scores == 6
        assert watch_language_model(MODEL).scores == 0
        talk.say("p0", "late", at=talk.now - timedelta(hours=5))
        talk.drain()
        assert [each.scores for each in watch_language_models()] == [2]
    found = {(row["prediction_id"], row["scorer"]): (row["score"], row["arm"]) for row in talk.scores()}
    assert found == {
        ("p1", "json"): (1.0, "champion"),
        ("p1", "length"): (1.0, "champion"),
        ("p2", "json"): (0.0, "canary"),
        ("p2", "length"): (0.0, "canary"),
        ("p3", "json"): (None, "champion"),
        ("p3", "length"): (None, "champion"),
        ("p0", "json"): (0.0, "champion"),
        ("p0", "length"): (1.0, "champion"),
    }


def test_the_means_of_served_versions_are_kept_until_the_watch_ends(talk: Talk) -> None:
    with use_context(talk.context()):
        set_language_monitors(MODEL, ALL)
        for number, text in enumerate(["{}", "no", "{}"]):
            talk.say(f"a{number}", text)
        talk.say("b1", "no", version=2, arm="canary")
        talk.drain()
        talk.later(1)
        watch_language_model(MODEL)
        ((name, kept),) = kept_means(talk.store)
        assert name == MODEL
        assert kept == [each for each in live_scores(MODEL) if each.version == 1]
        assert {(each.scorer, each.answers, round(each.mean, 9)) for each in kept} == {
            ("json", 3, 0.666666667),
            ("length", 3, 1.0),
        }
        talk.registry().set_traffic(MODEL, {"canary": (2, 0.5)})
        watch_language_model(MODEL)
        assert {each.version for _, found in kept_means(talk.store) for each in found} == {1, 2}
        set_language_monitors(MODEL, None)
        watch_language_model(MODEL)
        assert list(kept_means(talk.store)) == []


def test_what_is_expected_comes_as_a_label_that_is_a_text(talk: Talk) -> None:
    with use_context(talk.context()):
        set_language_monitors(MODEL, ALL)
        for name in ("p1", "p2", "p3"):
            talk.say(name, "Paris")
        talk.drain()
        talk.label("p1", " paris ")
        talk.label("p2", 1.0)  # a thumb
        talk.later(1)
        watch_language_model(MODEL)
        talk.label("p3", "Rome")
        talk.later(1)
        assert watch_language_model(MODEL).scores == 1
    found = {row["prediction_id"]: row["score"] for row in talk.scores() if row["scorer"] == "exact"}
    assert found == {"p1": 1.0, "p3": 0.0}


def test_only_the_sample_is_scored(talk: Talk) -> None:
    with use_context(talk.context()):
        set_language_monitors(MODEL, LanguageMonitors(share=0.2, scorers=(JSON,), drift=None))
        names = [f"p{number}" for number in range(200)]
        for name in names:
            talk.say(name, "{}")
        talk.drain()
        talk.later(1)
        watch_language_model(MODEL)
    chosen = [each for each in names if is_sampled(each, 0.2)]
    assert [row["prediction_id"] for row in talk.scores()] == sorted(chosen)
    assert 0 < len(chosen) < 200


def test_the_policys_patterns_tell_a_refusal(talk: Talk) -> None:
    with use_context(talk.context()):
        talk.registry().set_policy(MODEL, ModelPolicy(declining=("^tut mir leid",)))
        set_language_monitors(MODEL, LanguageMonitors(share=1.0, scorers=(Scorer(kind="refusal"),)))
        talk.say("p1", "I'm sorry, but I can't help with that.")
        talk.say("p2", "Tut mir leid, nein.")
        talk.say("p3", "Here you are.")
        talk.drain()
        talk.later(1)
        watch_language_model(MODEL)
    assert [row["score"] for row in talk.scores()] == [0.0, 0.0, 1.0]


class KilledError(BaseException):
    """The process died."""


def test_killed_between_any_two_writes_no_score_is_there_twice_and_none_is_lost(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"p{number:03d}" for number in range(60)]
    for number, name in enumerate(names):
        talk.say(name, "{}" if number % 3 else "no", at=talk.now + timedelta(seconds=number))
    talk.drain()
    talk.later(10)
    rng, kills = np.random.default_rng(0), 0
    append = ScoreTable.append

    def dying(table: ScoreTable, rows: Any, *, after: int | None) -> None:
        nonlocal kills
        for before in (True, False):
            if rng.random() < 0.3:
                kills += 1
                raise KilledError
            if before:
                append(table, rows, after=after)

    monkeypatch.setattr(ScoreTable, "append", dying)
    monkeypatch.setattr(jobs, "_CHUNK", 6)
    with use_context(talk.context()):
        set_language_monitors(MODEL, LanguageMonitors(share=1.0, scorers=(JSON, SHORT), drift=None))
        while True:
            try:
                watch_language_model(MODEL)
                break
            except KilledError:
                continue
    assert kills >= 5
    found = Counter((row["scorer"], row["prediction_id"]) for row in talk.scores())
    assert found == Counter((scorer, name) for scorer in ("json", "length") for name in names)
    assert [row["score"] for row in talk.scores()][:6] == [0.0, 1.0, 1.0, 0.0, 1.0, 1.0]


def test_two_runs_at_once_score_each_answer_once(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_CHUNK", 5)
    names = [f"p{number:03d}" for number in range(20)]
    for name in names:
        talk.say(name, "{}")
    talk.drain()
    talk.later(1)
    with use_context(talk.context()):
        set_language_monitors(MODEL, LanguageMonitors(share=1.0, scorers=(JSON,), drift=None))

        def run(watch: Callable[[str], Any] = watch_language_model) -> int:
            return int(watch(MODEL).scores)

        with ThreadPoolExecutor(4) as pool:
            runs = [pool.submit(copy_context().run, run) for _ in range(4)]
            added = [each.result() for each in runs]
    assert [row["prediction_id"] for row in talk.scores()] == names
    assert sum(added) >= 20  # a run whose own commit met another's may count it too


def test_means_have_an_interval_by_version_and_arm_and_scores_of_changed_scorers_do_not_mix(
    talk: Talk,
) -> None:
    rng = np.random.default_rng(3)
    for number in range(300):
        version, arm, right = ((1, "champion", 0.9), (2, "canary", 0.5))[number % 2]
        text = "{}" if rng.random() < right else "no"
        talk.say(f"p{number}", text, version=version, arm=arm, at=talk.now + timedelta(seconds=number))
    talk.drain()
    talk.later(30)
    with use_context(talk.context()):
        assert live_scores(MODEL) == []
        set_language_monitors(MODEL, LanguageMonitors(share=1.0, scorers=(JSON,), drift=None))
        watch_language_model(MODEL)
        champion, canary = sorted(live_scores(MODEL), key=lambda each: each.version)
        assert (champion.scorer, champion.version, champion.arm, champion.answers) == (
            "json",
            1,
            "champion",
            150,
        )
        assert (canary.version, canary.arm, canary.answers) == (2, "canary", 150)
        for each, true in ((champion, 0.9), (canary, 0.5)):
            assert each.lower < true < each.upper
            assert each.lower < each.mean < each.upper
            assert each.upper - each.lower < 0.35
        assert champion.lower > canary.upper
        stricter = Scorer(kind="json", required=("a",))
        set_language_monitors(MODEL, LanguageMonitors(share=1.0, scorers=(stricter,), drift=None))
        assert live_scores(MODEL) == []
        watch_language_model(MODEL)
        assert {each.mean for each in live_scores(MODEL)} == {0.0}
        with pytest.raises(ValueError, match="days: Input should be greater than 0"):
            live_scores(MODEL, days=0)


def test_a_judge_compares_shadows_with_what_callers_got(talk: Talk) -> None:
    for name, own, shadows in (
        ("p1", "bad", "good"), ("p2", "good", "bad"), ("p3", "same", "same"), ("p4", "good", None),
    ):  # fmt: skip
        talk.say(name, own, asked=f"Question of {name}")
        talk.say(name, shadows, version=2, arm="shadow", asked=f"Question of {name}")
    talk.say("p5", "alone")
    talk.drain()
    talk.later(1)
    judge = Judge(model="judge", version=1)
    sample = Sample(talk.store, MODEL, 1.0, talk.now - timedelta(days=1), talk.now)
    asked = []

    def ask(_: Judge, pairs: Any) -> Any:
        asked.extend(pairs)
        return [("first", "second") if each.first == "good" else ("second", "first") for each in pairs]

    assert judge_sample(sample, judge, ask) == 4
    assert judge_sample(sample, judge, ask) == 0
    assert [(each.question, each.first, each.second) for each in asked] == [
        ("Question of p1", "good", "bad"), ("Question of p2", "bad", "good"),
    ]  # fmt: skip
    assert {row["prediction_id"]: row["score"] for row in talk.scores()} == {
        "p1": 1.0,
        "p2": 0.0,
        "p3": 0.5,
        "p4": None,
    }
    assert {(row["version"], row["arm"], row["scorer"]) for row in talk.scores()} == {(2, "shadow", "judge")}


def test_settings_that_cannot_be_kept_are_refused_where_they_are_made(talk: Talk) -> None:
    with pytest.raises(ValidationError, match=r"\['json'\] are named twice"):
        LanguageMonitors(scorers=(JSON, Scorer(kind="json", required=("a",))))
    with pytest.raises(ValidationError, match="likelihood"):
        LanguageMonitors(scorers=(Scorer(kind="likelihood"),))
    for share in (0.0, 1.5):
        with pytest.raises(ValidationError, match="share"):
            LanguageMonitors(share=share)
    registry = talk.registry()
    with use_context(talk.context()):
        assert language_monitors(MODEL) is None
        registry.create_model("tabular")
        with pytest.raises(GenerativeError, match="'tabular' has no version of a language model"):
            set_language_monitors("tabular", ALL)
        judged = ALL.model_copy(update={"judge": Judge(model=MODEL, version=1)})
        with pytest.raises(EvaluationError, match="nobody knows how it agrees"):
            set_language_monitors(MODEL, judged)
        set_language_monitors(MODEL, ALL)
        assert language_monitors(MODEL) == ALL
        set_language_monitors(MODEL, None)
        assert language_monitors(MODEL) is None
        talk.say("p1", "{}")
        talk.drain()
        talk.later(1)
        assert watch_language_model(MODEL).scores == 0
    assert not Table(talk.store, f"scores/{MODEL}").exists()
