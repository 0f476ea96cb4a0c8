"""Power and false alarms of the paired comparison of answers, with simulated models that answer as those do."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from toque.functions.evaluation import EvaluationError, SliceRule
from toque.functions.evaluation.language import AnswerGate, Judge, Scorer, judge_answers
from toque.functions.evaluation.language.answer_gate import _compare_slices, judge_scores

ROWS, RUNS, EQUAL_PAIRS = 200, 40, 400
GATE: Final = AnswerGate(
    scorers=(
        Scorer(kind="json", required=("city",)),
        Scorer(kind="contains"),
        Scorer(kind="number", tolerance=0.5),
        Scorer(kind="length", max_length=120),
    )
)
Rng = np.random.Generator
Worse = Callable[[Rng, int], str]


def expected(row: int) -> str:
    return f"city-{row}, {row + 10}"


def good(row: int) -> str:
    return json.dumps({"city": f"city-{row}, {row + 10}"})


def mostly_good(rng: Rng) -> list[str]:
    """Answers of a model that is right in nine of ten rows, not always the same ones."""
    return [good(row) if rng.random() < 0.9 else good(row + 7) for row in range(ROWS)]


def sometimes(share: float, worse: Callable[[int], str]) -> Worse:
    return lambda rng, row: worse(row) if rng.random() < share else ""


WORSE: Final[dict[str, Worse]] = {
    "says nothing": sometimes(0.15, lambda _: " "),
    "refuses": sometimes(0.15, lambda _: "I am sorry, I cannot help with that."),
    "is cut": sometimes(0.15, lambda row: good(row)[:12]),
    "is fenced": sometimes(0.15, lambda row: f"```json\n{good(row)}\n```"),
    "is polite": sometimes(0.15, lambda row: f"Sure! {good(row)}"),
    "talks on": sometimes(0.15, lambda row: good(row) + " I hope that this helps you." * 5),
    "loops": sometimes(0.15, lambda row: good(row) * 8),
    "loses the field": sometimes(0.15, lambda row: json.dumps({"answer": expected(row)})),
    "renames the field": sometimes(0.15, lambda row: json.dumps({"City": expected(row)})),
    "uses quotes of Python": sometimes(0.15, lambda row: repr({"city": expected(row)})),
    "leaves a comma": sometimes(0.15, lambda row: good(row)[:-1] + ",}"),
    "misses by one": sometimes(0.25, lambda row: json.dumps({"city": f"city-{row}, {row + 11}"})),
    "swaps rows": sometimes(0.25, lambda row: good((row + 1) % ROWS)),
    "guesses one answer": sometimes(0.25, lambda _: good(0)),
    "lists all": sometimes(0.15, lambda row: json.dumps([expected(row), expected(row + 1)])),
    "translates": sometimes(0.15, lambda row: json.dumps({"ville": f"ville-{row}, {row + 10}"})),
    "copies the question": sometimes(0.15, lambda row: f"Which city is number {row}?"),
    "is vague": sometimes(0.25, lambda _: json.dumps({"city": "a large one"})),
    "rounds": sometimes(0.25, lambda row: json.dumps({"city": f"city-{row}, {round(row + 15, -1) + 1}"})),
    "fails on long rows": lambda rng, row: " " if row >= 160 and rng.random() < 0.9 else "",
}


def blocked(answers: list[str], champions: list[str], rng: Rng) -> bool:
    """Whether the gate refuses, with the rows in a random order as `read_rows` has them."""
    order = rng.permutation(ROWS)
    found = judge_answers(
        GATE, [answers[at] for at in order], [champions[at] for at in order], [expected(at) for at in order]
    )
    return not all(each.passed for each in found.checks)


@pytest.mark.proof
@pytest.mark.parametrize("kind", WORSE)
def test_a_worse_prompt_is_blocked(kind: str):
    rng = np.random.default_rng([20, *kind.encode()])
    found = 0
    for _ in range(RUNS):
        candidate = [WORSE[kind](rng, row) or text for row, text in enumerate(mostly_good(rng))]
        found += blocked(candidate, mostly_good(rng), rng)
    assert found / RUNS >= 0.95


@pytest.mark.proof
def test_an_equal_prompt_is_seldom_blocked():
    rng = np.random.default_rng(21)
    found = sum(blocked(mostly_good(rng), mostly_good(rng), rng) for _ in range(EQUAL_PAIRS))
    assert found / EQUAL_PAIRS <= GATE.alpha  # the bound that is promised; it must come out below


def test_what_is_measured_and_checked():
    gate = AnswerGate(scorers=(Scorer(),), max_drop=0.1, min_mean=0.9, min_rows=30)
    answers, wanted = ["yes"] * 28 + ["no"] * 2, ["yes"] * 30
    found = judge_answers(gate, answers, wanted, wanted)
    assert found.metrics == {"exact": 28 / 30, "champion_exact": 1.0}
    checks = {each.name: each for each in found.checks}
    assert checks["exact"].passed
    assert checks["rows"].passed
    assert checks["exact - champion, upper end"].passed
    assert checks["exact - champion, upper end"].note == "worse in 2 rows, better in 0"
    lower = checks["exact - champion, lower end"]  # 30 rows show no drop of at most a tenth
    assert not lower.passed
    assert lower.limit == -0.1
    assert found.intervals["exact - champion"].estimate == pytest.approx(-2 / 30)
    assert not judge_answers(gate, ["yes"] * 29, None, ["yes"] * 29).checks[0].passed


def test_an_alarm_takes_all_scorers_together():
    one, four = AnswerGate(min_rows=1), AnswerGate(min_rows=1, scorers=GATE.scorers)
    assert one.alpha == four.alpha
    answers, champions = [" "] * 7, [good(row) for row in range(7)]
    wanted = [expected(row) for row in range(7)]
    narrow = judge_answers(
        one.model_copy(update={"scorers": (Scorer(kind="contains"),)}), answers, champions, wanted
    )
    wide = judge_answers(four, answers, champions, wanted)
    assert narrow.intervals["contains - champion"].high < wide.intervals["contains - champion"].high


def test_scorers_have_names_of_their_own():
    with pytest.raises(ValidationError, match=r"\['regex'\] are named twice"):
        AnswerGate(scorers=(Scorer(kind="regex", pattern="a"), Scorer(kind="regex", pattern="b")))
    AnswerGate(scorers=(Scorer(kind="regex", pattern="a"), Scorer(kind="regex", pattern="b", name="b")))


SLICED: Final = AnswerGate(
    scorers=(Scorer(), Scorer(kind="contains")), slices=SliceRule(columns=("language", "topic"), min_rows=30)
)
LANGUAGES: Final = ("de", "en", "fr")
TOPICS: Final = ("bills", "goods", "parts", "tours", "visas")


def asked(rng: Rng, rows: int) -> pa.Table:
    return pa.table({"language": rng.choice(LANGUAGES, rows), "topic": rng.choice(TOPICS, rows)})


def right(rng: Rng, chance: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of a model by both scorers, which agree in most rows; chance: of being right, by row."""
    exact = rng.random(len(chance)) < chance
    contains = exact | (rng.random(len(chance)) < 0.1)
    return {"exact": exact.astype(np.float64), "contains": contains.astype(np.float64)}


# 400 equal pairs, 8 slices by 2 scorers each; in the second round all are worse by the margin and no more.
@pytest.mark.parametrize("margin", [0.0, 0.15])
def test_versions_that_are_nowhere_worse_by_more_than_the_margin_are_seldom_blocked(margin: float):
    assert SLICED.slices is not None
    rule = SLICED.slices.model_copy(update={"max_excess": margin})
    rng = np.random.default_rng([22, int(100 * margin)])
    found = 0
    for _ in range(EQUAL_PAIRS):
        table = asked(rng, 300)
        own, champion = right(rng, np.full(300, 0.8 - margin)), right(rng, np.full(300, 0.8))
        checks = [
            _compare_slices(rule, len(own), label, scores - champion[label], table)
            for label, scores in own.items()
        ]
        found += not all(each.passed for each in checks)
    assert 0 < found / EQUAL_PAIRS <= rule.alpha  # the bound that is declared, over all slices and scorers


def test_a_version_that_is_better_on_the_whole_is_blocked_by_the_slice_on_which_it_is_worse():
    rng = np.random.default_rng(23)
    assert SLICED.slices is not None
    gate = SLICED.model_copy(update={"slices": SLICED.slices.model_copy(update={"max_excess": 0.05})})
    found, gained = 0, []
    for _ in range(RUNS):
        table = asked(rng, 300)
        german = np.array(table["language"].to_pylist()) == "de"
        own, champion = right(rng, np.where(german, 0.2, 0.9)), right(rng, np.full(300, 0.6))
        judged = judge_scores(gate, own, champion, table)
        failed = [each.name for each in judged.checks if not each.passed]
        assert all("slices against champion" in name for name in failed)
        found += bool(failed)
        gained.append(judged.intervals["exact - champion"].estimate)
    assert np.mean(gained) > 0.03
    assert found / RUNS >= 0.95


def test_the_message_names_column_value_figures_interval_and_rows():
    """Of 50 German rows 30 are worse and 5 better: .5 lower, s = sqrt((35 - 50 * .25) / 49) = .6776, error .0958."""
    order = np.random.default_rng(24).permutation(150)
    table = pa.table({"language": ["de"] * 50 + ["en"] * 100}).take(order)
    scores = np.repeat([0.0, 1.0, 0.5, 1.0], [30, 5, 15, 100])[order]
    champion = np.repeat([1.0, 0.0, 0.5, 0.0], [30, 5, 15, 100])[order]
    gate = AnswerGate(slices=SliceRule(columns=("language",), min_rows=30, max_excess=0.1))
    judged = judge_scores(gate, {"exact": scores}, {"exact": champion}, table)
    checks = {each.name: each for each in judged.checks}
    assert checks["exact - champion, upper end"].passed
    check = checks["exact, slices against champion: least p of 2"]
    assert not check.passed
    assert check.limit == 0.05
    # Student's t of 49 degrees with 2.5 % above: 2.0096; .5 - 2.0096 * .0958 = .3074
    assert check.note.startswith("language = de: loss +0.5000 (+0.3074 to +0.6926) on 50 rows, p = ")
    assert "language = en: loss -1.0000" in check.note
    assert judge_scores(gate, {"exact": scores}, None, table).checks == judged.checks[:1]  # no champion


def test_scorers_and_the_judge_share_the_alpha_of_slices():
    rule = SliceRule(columns=("language",), min_rows=10)
    gate = AnswerGate(judge=Judge(model="judge", version=1), min_rows=1, slices=rule)
    table = pa.table({"language": ["de"] * 20 + ["en"] * 20})
    same = ["yes"] * 40
    judged = judge_answers(gate, same, same, same, [-1.0] * 12 + [0.0] * 8 + [1.0] * 20, table=table)
    exact, judge = (each for each in judged.checks if "slices" in each.name)
    assert (exact.limit, judge.limit) == (0.025, 0.025)
    assert (exact.passed, judge.passed) == (True, False)
    assert judge.name.startswith("judge, slices")
    assert judge.note.startswith("language = de: loss +0.6000")


def test_slices_without_their_rows_do_not_pass():
    gate = AnswerGate(slices=SliceRule(columns=("language",)))
    same = ["yes"] * 99
    few = judge_answers(gate, same, same, same, table=pa.table({"language": ["de"] * 99})).checks[-1]
    assert not few.passed
    assert "no slice of ('language',) has 100 rows" in few.note
    with pytest.raises(ValueError, match=r"\['language'\] need the table"):
        judge_answers(gate, same, same, same)
    with pytest.raises(EvaluationError, match=r"columns=\['language'\].*has columns \['topic'\]; add"):
        gate.check_slices(pa.table({"topic": ["a"]}))
    with pytest.raises(EvaluationError, match="'language' is of type list<item: string>; name columns"):
        gate.check_slices(pa.table({"language": [["de"]]}))


def test_slices_are_held_against_the_champion():
    gate = AnswerGate(slices=SliceRule(columns=("language",)))
    assert gate.slices is not None
    assert gate.slices.against == "champion"
    assert AnswerGate.model_validate({**gate.demand().limits, "name": gate.name}) == gate
    with pytest.raises(ValidationError, match="against='constant': answers are compared with the champion's"):
        AnswerGate(slices=SliceRule(columns=("language",), against="constant"))
