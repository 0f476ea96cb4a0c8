"""Scores by a registered classifier of texts: one that is trained here tells fruit from tools."""

import numpy as np
import pytest
from pydantic import ValidationError

from tests.functions.monitoring.language.conftest import MODEL, Talk, new_talk, talk
from tests.functions.training.test_classifier import BOTH, FRUIT, TOOL, classifier, encoder, trained
from tests.functions.training.test_llm import base
from toque.functions.evaluation import EvaluationError
from toque.functions.evaluation.language import AnswerGate, Scorer
from toque.functions.evaluation.language.answer_gate import judge_answers
from toque.functions.evaluation.language.scorers import check_classifier, scores_of
from toque.functions.monitoring.language import LanguageMonitors
from toque.functions.monitoring.language.jobs import live_scores, set_language_monitors, watch_language_model
from toque.functions.monitoring.language.scores import kept_means
from toque.functions.runtime import use_context
from toque.registry import NotFound

__all__ = ["base", "encoder", "talk"]  # fixtures
FRUITY = Scorer(kind="classifier", name="fruity", classifier="kinds@1", wanted="fruit")
GOOD, BAD = f"{BOTH[0]} {BOTH[1]} {FRUIT[0]}", f"{BOTH[0]} {BOTH[2]} {TOOL[1]}"


@pytest.fixture(scope="module")
def taught(tmp_path_factory, encoder):
    """The log of a language model, in whose store a classifier was trained and registered: once, as that takes seconds."""
    talk = new_talk(tmp_path_factory.mktemp("taught"))
    with use_context(talk.context()) as context:
        trained(context, encoder, "multiclass", classifier())
        yield talk


def test_the_score_is_the_probability_of_the_wanted_class(taught: Talk):
    registry = taught.registry()
    texts = [GOOD, BAD, f"{BOTH[3]} {TOOL[0]}", FRUIT[2]]
    fruity = scores_of(registry, FRUITY, texts, [""] * 4)
    tool = scores_of(registry, FRUITY.model_copy(update={"wanted": "tool"}), texts, [""] * 4)
    np.testing.assert_array_equal(np.round(fruity), [1.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(np.add(fruity, tool), 1.0, atol=1e-5)
    assert scores_of(registry, FRUITY, [], []) == []
    assert scores_of(registry, Scorer(), ["Yes", "no"], ["yes", "yes"]) == [1.0, 0.0]


def test_of_two_classes_without_names_either_may_be_wanted(talk: Talk, encoder):
    with use_context(talk.context()) as context:
        trained(context, encoder, "binary", classifier())
        one, zero = (
            scores_of(talk.registry(), FRUITY.model_copy(update={"wanted": wanted}), [GOOD, BAD], ["", ""])
            for wanted in ("1", "0")
        )
    np.testing.assert_array_equal(np.round(one), [0.0, 1.0])
    np.testing.assert_allclose(np.add(one, zero), 1.0, atol=1e-5)


def test_a_gate_blocks_answers_that_the_classifier_finds_worse(taught: Talk):
    gate = AnswerGate(scorers=(FRUITY,), min_rows=50)

    def judged(own: list[str], champion: list[str]):
        score = lambda *asked: scores_of(taught.registry(), *asked)  # noqa: E731
        return judge_answers(gate, own, champion, [""] * 60, score=score)

    assert all(each.passed for each in judged([GOOD] * 60, [GOOD] * 60).checks)
    worse = judged([BAD] * 60, [GOOD] * 60)
    assert [each.name for each in worse.checks if not each.passed] == ["fruity - champion, upper end"]


def test_live_answers_are_scored_by_it_once(taught: Talk):
    set_language_monitors(
        MODEL, LanguageMonitors(share=1.0, scorers=(FRUITY, Scorer(kind="json")), drift=None)
    )
    for number, text in enumerate([GOOD, BAD, None, BAD]):
        taught.say(f"a{number}", text)
    taught.drain()
    taught.later(1)
    assert [watch_language_model(MODEL).scores for _ in range(2)] == [8, 0]
    (fruity,) = (each for each in live_scores(MODEL) if each.scorer == "fruity")
    assert fruity.answers == 3
    assert fruity.mean == pytest.approx(1 / 3, abs=0.1)
    assert [row["score"] for row in taught.scores() if row["prediction_id"] == "a2"] == [None, None]


def test_a_classifier_that_is_gone_keeps_no_other_score_from_being_made(talk: Talk, encoder):
    with use_context(talk.context()) as context:
        trained(context, encoder, "multiclass", classifier())
        set_language_monitors(
            MODEL, LanguageMonitors(share=1.0, scorers=(FRUITY, Scorer(kind="json")), drift=None)
        )
        talk.registry().delete_version("kinds", 1)
        talk.say("a0", "{}")
        talk.drain()
        talk.later(1)
        with pytest.raises(EvaluationError, match="kinds@1 is DELETED; name a version that is ready"):
            watch_language_model(MODEL)
        assert [(row["scorer"], row["score"]) for row in talk.scores()] == [("json", 1.0)]
        assert [(each.scorer, each.mean) for _, kept in kept_means(talk.store) for each in kept] == [
            ("json", 1.0)
        ]


def test_what_is_no_such_classifier_is_refused_where_it_is_named(taught: Talk):
    registry = taught.registry()
    for changes, message in (
        ({"wanted": "toxic"}, r"wanted='toxic' is no class of kinds@1, which has \['fruit', 'tool'\]"),
        ({"classifier": f"{MODEL}@1"}, f"{MODEL}@1 does not read one text; name a classifier of texts"),
    ):
        scorer = FRUITY.model_copy(update=changes)
        with pytest.raises(EvaluationError, match=message):
            check_classifier(registry, scorer)
        with pytest.raises(EvaluationError, match=message):
            set_language_monitors(MODEL, LanguageMonitors(scorers=(scorer,)))
    with pytest.raises(NotFound):
        check_classifier(registry, FRUITY.model_copy(update={"classifier": "kinds@9"}))
    with pytest.raises(EvaluationError, match="needs a registered version"):
        FRUITY.score("text")
    for wrong in (
        {"wanted": "fruit"},
        {"classifier": "kinds@1"},
        {"classifier": "kinds@latest", "wanted": "x"},
    ):
        with pytest.raises(ValidationError):
            Scorer.model_validate({"kind": "classifier", **wrong})
    with pytest.raises(ValidationError, match="it belongs to 'classifier'"):
        Scorer(kind="json", wanted="x")
