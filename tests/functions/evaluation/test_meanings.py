"""Each outcome of the table is what the code makes of it."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import f1_score, log_loss, mean_poisson_deviance, ndcg_score, roc_auc_score
from sklearn.metrics.pairwise import cosine_distances

from toque.functions.evaluation import (
    Direction,
    EvaluationError,
    FairnessRule,
    Gate,
    Invariance,
    RobustnessRule,
    SliceRule,
)
from toque.functions.evaluation.gate import judge
from toque.functions.evaluation.meanings import MEANINGS, Outcome
from toque.functions.evaluation.metrics.numbers import (
    COUNT_METRICS,
    TEXT_METRICS,
    VECTOR_METRICS,
    edit_distance,
    edits,
    poisson_deviance,
    token_distance_of,
)
from toque.functions.evaluation.metrics.probabilities import LABEL_METRICS, by_label
from toque.functions.evaluation.metrics.ranking import RANKING_METRICS, ndcg_loss, padded
from toque.functions.evaluation.offline_gate import EvaluatedVersion, extra_checks
from toque.functions.evaluation.outcome_kinds import kind_for, kind_of
from toque.functions.model_formats.errors import TrainingDataError
from toque.registry import Lineage, ModelVersion
from toque.registry.models import Signature, TensorSpec

NAMES = ("autumn", "summer", "winter")
ROWS, ITEMS = 2_000, 5
INPUT = TensorSpec(name="numeric", datatype="FP32", shape=[-1, 1], columns=["a"])


def table(outcome: Outcome) -> pa.Table:
    """Rows whose label follows `a`."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=ROWS)
    labels: dict[Outcome, Any] = {
        "binary": (a + rng.normal(size=ROWS) > 0).astype(int),
        "multiclass": [NAMES[place] for place in np.digitize(a, [-0.5, 0.5])],
        "multilabel": [
            [name for name, by in zip(NAMES, (-1.0, 0.0, 1.0), strict=True) if each > by]
            for each in a + 0.5 * rng.normal(size=ROWS)
        ],
        "number": a + rng.normal(size=ROWS),
        "count": rng.poisson(np.exp(a)),
        "vector": [[each, -each, 1.0] for each in a],
        "ranking": np.clip(np.round(a + 0.5 * rng.normal(size=ROWS)), 0, 2).astype(int),
        "text": [f"about {each:.1f}" for each in a],
    }
    request = [f"r{place // ITEMS}" for place in range(ROWS)]
    return pa.table(
        {"a": a, "request": request, "town": rng.choice(["x", "y"], ROWS), "label": labels[outcome]}
    )


def answers(outcome: Outcome, rows: pa.Table) -> Any:
    """Answers that follow `a` as the labels do."""
    a = np.nan_to_num(rows["a"].to_numpy(zero_copy_only=False).astype(float))
    if outcome == "multiclass":
        far = -np.abs(a[:, None] - np.array([-1.0, 0.0, 1.0]))
        return np.exp(far) / np.exp(far).sum(axis=1, keepdims=True)
    if outcome == "multilabel":
        return 1 / (1 + np.exp(-3 * (a[:, None] - np.array([-1.0, 0.0, 1.0]))))
    if outcome == "text":
        return np.array([f"about {each:.2f}" for each in a], dtype=object)
    if outcome == "vector":
        return np.stack([a, -a, np.full(len(a), 0.5)], axis=1)
    return {"binary": 1 / (1 + np.exp(-2 * a)), "number": a, "count": np.exp(a), "ranking": a}[outcome]


@pytest.mark.parametrize("outcome", get_args(Outcome))
def test_a_kind_is_known_by_its_answer_and_measures_what_the_table_says(outcome: Outcome) -> None:
    kind, meaning = kind_for(outcome, NAMES, "request"), MEANINGS[outcome]
    assert (
        kind_of(Signature(inputs=[INPUT], outputs=[kind.answer_spec]), "request").name == kind.name == outcome
    )
    assert tuple(kind.metrics) == meaning.metrics
    assert f"`{kind.output}`" in meaning.answer
    assert meaning.main_metric in meaning.metrics


@pytest.mark.parametrize("outcome", get_args(Outcome))
def test_every_check_with_a_meaning_is_made(outcome: Outcome) -> None:
    kind, rows = kind_for(outcome, NAMES, "request"), table(outcome)
    gate = Gate(
        max_ece=None,
        max_log_loss_ratio={"constant": 0.9},
        slices=SliceRule(columns=("town",)),
        fairness=(FairnessRule(column="town", measure="loss", max_gap=1.0, max_gap_high=1.0),),
        robustness=RobustnessRule(max_missing_ratio=100.0, max_shift_ratio=100.0),
        behaviours=()
        if "gate.behaviours" in MEANINGS[outcome].refused
        else (Invariance(column="town"), Direction(column="a", change=1.0, expected="up")),
    )
    assert not gate.unmeasurable(outcome)

    def answered(other: pa.Table) -> Any:
        return kind.by_unit(other, answers(outcome, other))

    y, own = kind.by_unit(rows, kind.label(rows, "label")), answered(rows)
    constant = kind.by_unit(rows, kind.baselines["constant"](rows, rows, ["a"], [], "label"))
    version = ModelVersion.model_construct(
        model="m",
        version=1,
        signature=Signature(inputs=[INPUT], outputs=[kind.answer_spec]),
        lineage=Lineage(),
    )
    found = EvaluatedVersion(version, kind, rows, y, own, answered, {"constant": constant}, None)
    checks = extra_checks(gate, found)
    assert {check.passed for check in checks} == {True}, checks
    assert len(checks) == 5 + len(gate.behaviours)
    metrics = {name: metric(y, own) for name, metric in kind.metrics.items()}
    ratios = {"constant": kind.mean_loss(y, own) / kind.mean_loss(y, constant)}
    assert all(
        check.passed for check in judge(gate, rows=len(y), metrics=metrics, ratios=ratios, has_champion=False, loss=kind.loss)
    )  # fmt: skip


def test_several_labels_are_measured_as_elsewhere() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random((200, 3)) < [0.2, 0.5, 0.7]).astype(float)
    p = np.clip(0.6 * y + 0.4 * rng.random((200, 3)), 0.01, 0.99)
    found = {name: metric(y, p) for name, metric in LABEL_METRICS.items()}
    assert found["log_loss"] == pytest.approx(
        np.mean([log_loss(*both) for both in zip(y.T, p.T, strict=True)])
    )
    for average in ("macro", "micro"):
        assert found[f"{average}_f1"] == pytest.approx(f1_score(y, p >= 0.5, average=average))
    each = by_label(y, p, NAMES)
    assert each["auc of summer"] == pytest.approx(roc_auc_score(y[:, 1], p[:, 1]))
    assert found["ece"] == pytest.approx(np.mean([each[f"ece of {name}"] for name in NAMES]))


@pytest.mark.parametrize(
    ("lists", "named"),
    [
        ([["autumn"], ["spring"]], r"lists \['spring'\], the version knows"),
        (["autumn", "summer"], "want a list of class names for each row"),
        ([["autumn"], None], "1 nulls in 2 rows"),
    ],
)
def test_labels_that_are_no_known_names_are_refused(lists: Any, named: str) -> None:
    with pytest.raises(TrainingDataError, match=named):
        kind_for("multilabel", NAMES).label(pa.table({"y": lists}), "y")


def test_orders_are_measured_as_elsewhere() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, (50, 12)).astype(float)
    score = np.round(rng.normal(size=(50, 12)), 0)  # many ties
    expected = [ndcg_score([2.0**own - 1], [said], k=10) for own, said in zip(y, score, strict=True)]
    assert 1 - ndcg_loss(y, score) == pytest.approx(expected)
    assert RANKING_METRICS["ndcg"](y, score) == pytest.approx(np.mean(expected))
    # by hand: the relevant items stand second and third of three; of the tied pair either may be first
    relevance, tied = np.array([[0.0, 1.0, 1.0]]), np.array([[2.0, 1.0, 0.0]])
    assert RANKING_METRICS["mrr"](relevance, tied) == 0.5
    assert RANKING_METRICS["mrr"](relevance, np.array([[1.0, 1.0, 0.0]])) == pytest.approx(1 / 1.5)
    assert RANKING_METRICS["recall"](np.ones((1, 20)), rng.normal(size=(1, 20))) == pytest.approx(0.5)


def test_an_order_of_equal_scores_gains_nothing_by_the_order_of_the_rows() -> None:
    y = np.array([[2.0, 1.0, 0.0, 0.0]])
    assert ndcg_loss(y, np.zeros((1, 4))) == pytest.approx(ndcg_loss(y[:, ::-1], np.zeros((1, 4))))
    assert ndcg_loss(np.zeros((1, 4)), np.arange(4.0)[None]) == [0.0]  # nothing can be put wrongly


def test_rows_are_arranged_by_request_in_the_order_of_the_rows() -> None:
    found = padded(np.array([1.0, 2.0, 3.0, 4.0]), np.array([7, 3, 7, 3]))
    assert found.tolist() == [[1.0, 3.0], [2.0, 4.0]]
    kind, rows = kind_for("ranking", group="q"), pa.table({"q": ["b", "a", "b", "c"], "v": [1, 2, 3, 4]})
    assert kind.unit_rows(rows)["v"].to_pylist() == [1, 2, 4]
    assert kind.take(rows, np.array([0, 2]))["v"].to_pylist() == [1, 3, 4]
    with pytest.raises(EvaluationError, match="name the column of requests"):
        kind_for("ranking")


def test_distances_are_measured_as_elsewhere() -> None:
    rng = np.random.default_rng(0)
    y, v = rng.normal(size=(20, 5)), rng.normal(size=(20, 5))
    assert VECTOR_METRICS["cosine_distance"](y, v) == pytest.approx(
        np.diag(cosine_distances(y, v)).mean() / 2
    )
    assert VECTOR_METRICS["euclidean_distance"](y, v) == pytest.approx(np.linalg.norm(y - v, axis=1).mean())
    assert VECTOR_METRICS["cosine_distance"](y, 0 * v) == 0.5  # no direction is as good as an unrelated one
    with pytest.raises(EvaluationError, match="1 of 20 rows hold a value that is no finite number"):
        VECTOR_METRICS["cosine_distance"](y, np.where(np.arange(100).reshape(20, 5) == 3, np.nan, v))
    with pytest.raises(TrainingDataError, match="every row needs the same size"):
        kind_for("vector").label(pa.table({"y": [[1.0, 2.0], [1.0]]}), "y")


def test_texts_are_measured_as_by_hand() -> None:
    y = np.array(["kitten", "Main Street 12", "", "ja"], dtype=object)
    said = np.array(["sitting", "12 main street", "x", "ja "], dtype=object)
    # Levenshtein's own example: 3 of 7 letters; F1 of words: 0, 1, 0, 1; the same but for the space: the last
    assert edit_distance(y, said)[[0, 2, 3]] == pytest.approx([3 / 7, 1.0, 1 / 3])
    found = {name: metric(y, said) for name, metric in TEXT_METRICS.items()}
    assert (found["token_f1"], found["exact_match"]) == (0.5, 0.25)
    # SQuAD's F1 of "the big cat sat" for "a cat sat": 2 of 4 and of 3 words
    assert token_distance_of("a cat sat", "the big cat sat") == pytest.approx(
        1 - 2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3)
    )
    assert (token_distance_of("?!", "?!"), token_distance_of("?!", "!"), token_distance_of("a", "?")) == (
        0,
        1,
        1,
    )


def test_edits_are_those_of_the_matrix() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        one, other = ("".join(rng.choice(list("abé"), rng.integers(0, 80))) for _ in range(2))
        row = list(range(len(other) + 1))
        for at, letter in enumerate(one, 1):  # Wagner and Fischer, 1974
            below = [at]
            for place, across in enumerate(other, 1):
                below.append(min(row[place] + 1, below[-1] + 1, row[place - 1] + (letter != across)))
            row = below
        assert edits(one, other) == row[-1]


def test_the_nearest_text_beats_the_commonest_where_texts_follow_texts() -> None:
    kind = kind_for("text")
    streets = [f"{name} street" for name in ("oak", "elm", "ash", "fir")]
    rows = pa.table(
        {"typed": [f"{each}  {at % 9}" for at, each in enumerate(streets * 25)], "label": streets * 25}
    )
    y = kind.label(rows, "label")
    losses = [
        kind.mean_loss(y, kind.baselines[name](rows, rows, [], ["typed"], "label"))
        for name in ("constant", "logistic")
    ]
    assert losses[1] == 0.0
    assert losses[0] > 0.1
    with pytest.raises(TrainingDataError, match="want a text for each row"):
        kind.label(pa.table({"y": [1, 2]}), "y")


def test_counts_are_measured_as_elsewhere() -> None:
    y, rate = np.array([0.0, 1.0, 3.0, 7.0]), np.array([0.5, 1.0, 2.0, 9.0])
    assert poisson_deviance(y, rate).mean() == pytest.approx(mean_poisson_deviance(y, rate))
    found = {name: metric(y, rate) for name, metric in COUNT_METRICS.items()}
    # .5 + 0 + 1 + 2 over 4; 12.5 over 11; (.25/.5 + 0 + 1/2 + 4/9) over 4
    assert found["mae"] == pytest.approx(0.875)
    assert found["calibration"] == pytest.approx(12.5 / 11)
    assert found["dispersion"] == pytest.approx((0.5 + 0.5 + 4 / 9) / 4)


@pytest.mark.parametrize(
    ("label", "rate", "named"),
    [
        ([1.5], [1.0], "integers from 0 on, found"),
        ([-1.0], [1.0], "integers from 0 on, found"),
        ([1.0], [-0.1], "no numbers from 0 on, first -0.1"),
        ([1.0], [np.nan], "no numbers from 0 on"),
    ],
)
def test_what_is_no_count_or_no_rate_is_refused(label: list[float], rate: list[float], named: str) -> None:
    with pytest.raises(EvaluationError, match=named):
        poisson_deviance(np.array(label), np.array(rate))


def test_a_label_that_is_no_count_is_named() -> None:
    with pytest.raises(TrainingDataError, match=r"holds \[1.5\] in 1 of 2 rows, which are no counts"):
        kind_for("count").label(pa.table({"y": [1.0, 1.5]}), "y")


def test_the_poisson_baseline_beats_a_constant_rate_on_counts_that_follow_a_column() -> None:
    kind, rows = kind_for("count"), table("count")
    y = kind.label(rows, "label")
    losses = {
        name: kind.mean_loss(y, learn(rows, rows, ["a"], ["town"], "label"))
        for name, learn in kind.baselines.items()
    }
    assert losses["logistic"] < 0.7 * losses["constant"]
