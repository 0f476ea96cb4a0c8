"""Scores of retrieval; figures by hand."""

import math

import pytest

from toque.functions.evaluation import EvaluationError
from toque.functions.retrieval import score_retrieval
from toque.functions.retrieval.jobs import score_step


@pytest.mark.parametrize(
    ("found", "relevant", "hit", "ndcg", "rank"),
    [
        (["a", "b"], ["a"], 1, 1, 1),
        (["b", "a"], ["a"], 1, 1 / math.log2(3), 1 / 2),
        (["b", "c", "a"], ["a"], 0, 0, 0),  # beyond k
        (["b", "b", "a"], ["a"], 1, 1 / math.log2(3), 1 / 2),  # chunks of one document count once
        (["a", "b"], ["b", "a"], 1, 1, 1),
        (["c", "a"], ["a", "b"], 1, (1 / math.log2(3)) / (1 + 1 / math.log2(3)), 1 / 2),
        ([], ["a"], 0, 0, 0),
    ],
)
def test_a_step_is_scored(found: list[str], relevant: list[str], hit: float, ndcg: float, rank: float):
    score = score_step(found, relevant, k=2)
    assert score.hit == hit
    assert score.ndcg == pytest.approx(ndcg)
    assert score.reciprocal_rank == rank


def test_means_have_intervals():
    right, wrong = score_step(["a"], ["a"], k=4), score_step([], ["a"], k=4)
    found = score_retrieval([right] * 30 + [wrong] * 10, k=4)
    assert (found.questions, found.k, found.hit.estimate) == (40, 4, 0.75)
    # a share's standard error is .068: about two of them either way
    assert found.hit.low == pytest.approx(0.75 - 0.134, abs=0.03)
    assert found.hit.high == pytest.approx(0.75 + 0.134, abs=0.03)
    with pytest.raises(EvaluationError, match="no questions"):
        score_retrieval([], k=4)
    with pytest.raises(EvaluationError, match="nothing is relevant"):
        score_step(["a"], [], k=4)
