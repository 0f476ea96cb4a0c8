"""A judge of answers: both orders, agreement with people and its interval, and the gate that listens to it."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pytest

from tests.language_model import language_model_weights
from toque.functions import Context
from toque.functions.evaluation import EvaluationError
from toque.functions.evaluation.language import AnswerGate, Judge, JudgeAgreement, Scorer, judge_answers
from toque.functions.evaluation.language.answering import calibrated
from toque.functions.evaluation.language.jobs import calibrate_judge, evaluate_answers
from toque.functions.evaluation.language.judge import AGREEMENT, Preference, agreement, chosen, verdict
from toque.functions.generative import EngineSettings, Prompt, register_generative
from toque.functions.stats.comparison.betting import paired_cs
from toque.registry import Table, TableSnapshot

JUDGE: Final = Judge(model="judge", version=1, min_agreement=0.8, min_labels=50)
Both = tuple[Preference | None, Preference | None]
AGREES: Final[Both] = ("first", "second")
DIFFERS: Final[Both] = ("second", "first")
PLACE: Final[Both] = ("first", "first")


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("A", "first"),
        (" B.", "second"),
        ("The better answer is B", "second"),
        ("**A** is better than B", "first"),
        ("Answer", None),
        ("", None),
    ],
)
def test_a_choice_is_read(answer: str, found: Preference | None):
    assert chosen(answer) == found


def test_a_judge_that_contradicts_itself_ties():
    assert verdict(*AGREES) == "first"
    assert verdict(*DIFFERS) == "second"
    for both in (PLACE, ("second", "second"), (None, "second"), ("first", None), (None, None)):
        assert verdict(*both) == "tie"


def test_agreement_is_of_decided_pairs_with_an_exact_interval():
    """Interval of 45 in 50 by Clopper and Pearson: .782 to .967, as R's binom.test gives it."""
    choices = [AGREES] * 45 + [DIFFERS] * 5 + [PLACE] * 30 + [(None, "first")] * 20 + [PLACE] * 10
    people: list[Preference] = ["first"] * 100 + ["tie"] * 10
    found = agreement(choices, people)
    assert (found.labels, found.decided, found.ties, found.judged_ties) == (100, 50, 10, 10)
    assert found.agreement is not None
    assert found.agreement.estimate == 0.9
    assert found.agreement.low == pytest.approx(0.7819, abs=1e-4)
    assert found.agreement.high == pytest.approx(0.9667, abs=1e-4)
    assert found.flipped == pytest.approx(40 / 110)
    assert found.unread == pytest.approx(20 / 110)


def test_ends_of_the_interval_are_those_of_a_share():
    all_right, none_right = (
        agreement([AGREES] * 20, ["first"] * 20),
        agreement([DIFFERS] * 20, ["first"] * 20),
    )
    assert all_right.agreement is not None
    assert none_right.agreement is not None
    assert (all_right.agreement.high, none_right.agreement.low) == (1, 0)
    # the bound by hand: (alpha / 2) ** (1 / n)
    assert all_right.agreement.low == pytest.approx(0.025 ** (1 / 20))


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        ([AGREES] * 49, "held against 49 preferences"),
        ([PLACE] * 60, "decides no pair"),
        ([AGREES] * 50 + [DIFFERS] * 10, r"agrees in 0\.83 \(0\.71 to 0\.92\) of 60"),
        ([AGREES] * 4 + [PLACE] * 56, r"agrees in 1\.00 \(0\.40 to 1\.00\) of 4"),
    ],
)
def test_a_judge_that_agrees_too_little_is_refused(choices: list[Both], reason: str):
    with pytest.raises(EvaluationError, match=reason):
        agreement(choices, ["first"] * len(choices)).require(JUDGE)


def test_a_judge_that_agrees_is_heard():
    agreement([AGREES] * 57 + [DIFFERS] * 3, ["first"] * 60).require(JUDGE)


def test_the_interval_covers():
    """Exact, so that it misses in at most 5 % of runs whatever the share: 2,000 runs, and 4 standard errors above."""
    rng = np.random.default_rng(5)
    misses = 0
    for _ in range(2_000):
        right = rng.random(60) < 0.85
        found = agreement([AGREES if each else DIFFERS for each in right], ["first"] * 60).agreement
        assert found is not None
        misses += not found.low <= 0.85 <= found.high
    assert misses / 2_000 <= 0.05 + 4 * (0.05 * 0.95 / 2_000) ** 0.5


def test_preferences_of_the_judge_refuse_a_worse_version_and_share_the_alarms():
    gate = AnswerGate(scorers=(Scorer(kind="length", max_length=99),), judge=JUDGE, min_rows=1)
    answers = ["x"] * 60
    worse = judge_answers(gate, answers, answers, [""] * 60, [-1.0] * 20 + [0.0] * 40)
    checks = {each.name: each for each in worse.checks}
    assert not checks["judge - champion, upper end"].passed
    assert checks["judge - champion, upper end"].note == "worse in 20 rows, better in 0"
    assert checks["length - champion, upper end"].passed
    half = paired_cs([-1.0] * 20 + [0.0] * 40, alpha=gate.alpha / 2)
    assert worse.intervals["judge - champion"].high == half.upper
    tied = judge_answers(gate, answers, answers, [""] * 60, [0.0] * 60)
    assert all(each.passed for each in tied.checks)


def judging(**prompt: Any) -> Prompt:
    text = "Question: {{ question }}\nA: {{ first }}\nB: {{ second }}\nWhich is right, A or B? Answer: "
    return Prompt.model_validate(
        {
            "messages": [{"role": "user", "content": text}],
            "variables": {"question": {}, "first": {}, "second": {}},
            "parameters": {"temperature": 0, "max_tokens": 3},
            **prompt,
        }
    )


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """Weights that no engine could read: what is refused is refused before one starts."""
    file = tmp_path / "small.gguf"
    file.write_bytes(b"GGUF and no more")
    return file


def labelled(context: Context, **columns: list[Any]) -> TableSnapshot:
    rows = {"question": ["1+1?"], "first": ["2"], "second": ["3"], "preferred": ["first"]} | columns
    return Table(context.store, "labels").append(
        pa.table({k: pa.array(v, pa.string()) for k, v in rows.items()})
    )


def test_what_is_no_judge_and_no_pair_is_named(context: Context, fake: Path):
    register_generative(context.registry(), "judge", weights=fake, prompt=Prompt())
    with pytest.raises(EvaluationError, match=r"no variables \['first', 'question', 'second'\]"):
        calibrate_judge(JUDGE, labelled(context))
    with pytest.raises(EvaluationError, match="row 0: preferred='both' is not one of"):
        calibrate_judge(JUDGE, labelled(context, preferred=["both"]))
    bare = Table(context.store, "bare").append(pa.table({"question": ["1+1?"]}))
    with pytest.raises(EvaluationError, match=r"need \['first', 'second', 'preferred'\]"):
        calibrate_judge(JUDGE, bare)


def test_a_gate_hears_no_judge_that_was_not_measured_by_the_function(context: Context, fake: Path):
    registry = context.registry()
    register_generative(registry, "judge", weights=fake, prompt=judging())
    register_generative(registry, "chat", weights=fake)
    rows = Table(context.store, "rows").append(pa.table({"prompt": ["Hi"], "expected": ["Hello"]}))
    gate = AnswerGate(judge=JUDGE, min_rows=1)
    found = evaluate_answers("chat", 1, rows, gate)
    assert not found.passed
    assert "run calibrate_judge" in found.reason
    good = agreement([AGREES] * 60, ["first"] * 60).model_dump(mode="json")
    registry.record_gate("judge", 1, AGREEMENT.name, passed=True, details={"agreement": good})  # by hand
    assert "run calibrate_judge" in evaluate_answers("chat", 1, rows, gate).reason
    registry.record_gate(
        "judge", 1, AGREEMENT.name, passed=True, details={"agreement": good}, demand=AGREEMENT.digest
    )
    assert calibrated(registry, JUDGE) == JudgeAgreement.model_validate(good)
    stricter = JUDGE.model_copy(update={"min_agreement": 0.99})
    with pytest.raises(EvaluationError, match=r"0\.99 is demanded"):
        calibrated(registry, stricter)


@pytest.mark.slow
def test_a_small_model_that_prefers_a_place_is_refused_as_a_judge(context: Context):
    registry = context.registry()
    settings = EngineSettings(context_length=256, slots=4)
    register_generative(
        registry, "judge", weights=language_model_weights(), settings=settings, prompt=judging()
    )
    numbers = range(2, 14)
    pairs = labelled(
        context,
        question=[f"What is {each} plus 1?" for each in numbers],
        first=[str(each + 1) if each % 2 else "a fish" for each in numbers],
        second=["a fish" if each % 2 else str(each + 1) for each in numbers],
        preferred=["first" if each % 2 else "second" for each in numbers],
    )
    judge = Judge(model="judge", version=1, min_agreement=0.95, min_labels=len(numbers))
    found = calibrate_judge(judge, pairs)
    recorded = registry.get_version("judge", 1).gates["agreement"]
    assert recorded.passed is False  # 12 pairs cannot show .95, whatever it says
    assert recorded.details["agreement"] == found.model_dump(mode="json")
    assert found.labels == len(numbers)
    assert found.flipped + found.unread + found.decided / found.labels == pytest.approx(1)
    rows = Table(context.store, "rows").append(pa.table({"prompt": ["Hi"], "expected": ["Hello"]}))
    refused = evaluate_answers("judge", 1, rows, AnswerGate(judge=judge, min_rows=1))
    assert "is demanded of the lower end" in refused.reason
