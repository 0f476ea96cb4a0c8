"""The loss of every outcome in a rollout: an equal challenger is not decided on more often than alpha, a better one is promoted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from toque.functions.evaluation.meanings import MEANINGS, Outcome
from toque.functions.evaluation.realised_loss import score
from toque.functions.rollout.evidence.sums import PairedLoss
from toque.functions.rollout.judge.interval import improvement
from toque.functions.rollout.policy import RolloutPolicy

ALPHA, LOOKS, BY_LOOK, ITEMS = 0.05, 10, 60, 5
AT_ONCE = 20  # rollouts that are simulated together: millions of names at once take ten times as long each
AT = datetime(2024, 1, 1, tzinfo=UTC)
Column = list[Any]
Simulated = tuple[dict[str, Column], list[Column]]
"""Columns of the labels, and the outputs of each of two versions."""


def noisy(rng: np.random.Generator, *, noise: tuple[float, float], size: Any) -> list[npt.NDArray[Any]]:
    """Draw the errors of two versions, each from its own noise."""
    return [scale * rng.normal(size=size) for scale in noise]


def binary(rng: np.random.Generator, n: int, noise: tuple[float, float]) -> Simulated:
    logit = rng.normal(size=n)
    labels = (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(float)
    answers = [1 / (1 + np.exp(-logit - each)) for each in noisy(rng, noise=noise, size=n)]
    return {"label": labels.tolist()}, [each[:, None].tolist() for each in answers]


def multiclass(rng: np.random.Generator, n: int, noise: tuple[float, float]) -> Simulated:
    logits = rng.normal(size=(n, 3))

    def softmax(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        powers = np.exp(values)
        shares: npt.NDArray[Any] = powers / powers.sum(axis=1, keepdims=True)
        return shares

    labels = (softmax(logits).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).astype(float)
    return {"label": labels.tolist()}, [
        softmax(logits + each).tolist() for each in noisy(rng, noise=noise, size=(n, 3))
    ]


def multilabel(rng: np.random.Generator, n: int, noise: tuple[float, float]) -> Simulated:
    logit = rng.normal(size=(n, 4)) + rng.normal(size=(n, 1))  # labels of one row go together
    truth = (rng.random((n, 4)) < 1 / (1 + np.exp(-logit))).astype(float)
    answers = [1 / (1 + np.exp(-logit - each)) for each in noisy(rng, noise=noise, size=(n, 4))]
    return {"label": [math.nan] * n, "truth": truth.tolist()}, [each.tolist() for each in answers]


def ranking(rng: np.random.Generator, n: int, noise: tuple[float, float]) -> Simulated:
    worth = rng.normal(size=(n, ITEMS))
    labels = np.clip(np.round(worth + rng.normal(size=(n, ITEMS))), 0, 3)
    answers = [worth + each for each in noisy(rng, noise=noise, size=(n, ITEMS))]
    names = [f"{place:08d}:{item}" for place in range(n) for item in range(ITEMS)]
    return {"prediction_id": names, "label": labels.ravel().tolist()}, [
        each.reshape(-1, 1).tolist() for each in answers
    ]


def vector(rng: np.random.Generator, n: int, noise: tuple[float, float]) -> Simulated:
    truth = rng.normal(size=(n, 4))
    answers = [truth + 0.5 * rng.normal(size=(n, 4)) + each for each in noisy(rng, noise=noise, size=(n, 4))]
    return {"label": [math.nan] * n, "truth": truth.tolist()}, [each.tolist() for each in answers]


def text(rng: np.random.Generator, n: int, noise: tuple[float, float]) -> Simulated:
    letters = rng.integers(97, 105, (n, 10))
    truth = ["".join(map(chr, row)) for row in letters.tolist()]
    answers = []
    for scale in noise:  # a letter is another one more often for the noisier version
        wrong = rng.random((n, 10)) < 0.2 + 0.2 * scale
        said = np.where(wrong, rng.integers(97, 105, (n, 10)), letters)
        answers.append(["".join(map(chr, row)) for row in said.tolist()])
    return {"label": [math.nan] * n, "label_text": truth}, answers


def number(rng: np.random.Generator, n: int, noise: tuple[float, float]) -> Simulated:
    mean = rng.normal(size=n)
    labels = mean + rng.standard_t(4, size=n)  # heavy tails: no fourth moment without the cap
    answers = [mean + each for each in noisy(rng, noise=noise, size=n)]
    return {"label": labels.tolist()}, [each[:, None].tolist() for each in answers]


def count(rng: np.random.Generator, n: int, noise: tuple[float, float]) -> Simulated:
    rate = np.exp(rng.normal(size=n))
    labels = rng.poisson(rate * rng.gamma(2.0, 0.5, size=n)).astype(float)  # more dispersed than Poisson's
    answers = [rate * np.exp(each) for each in noisy(rng, noise=noise, size=n)]
    return {"label": labels.tolist()}, [each[:, None].tolist() for each in answers]


SIMULATED: dict[Outcome, Callable[[np.random.Generator, int, tuple[float, float]], Simulated]] = {
    "binary": binary, "multiclass": multiclass, "multilabel": multilabel, "number": number, "count": count,
    "ranking": ranking, "vector": vector, "text": text,
}  # fmt: skip


def losses(
    outcome: Outcome, n: int, noise: tuple[float, float], seed: Sequence[int]
) -> list[npt.NDArray[np.float64]]:
    """Losses (n,) of two versions on the same labels, as a rollout computes them from the log."""
    labels, answers = SIMULATED[outcome](np.random.default_rng(seed), n, noise)
    policy = RolloutPolicy(loss=MEANINGS[outcome].losses[0])
    found, many = [], len(labels["label"])
    names = [f"{place:08d}" for place in range(n)]
    for given in answers:
        texts = {"answer_text": given} if isinstance(given[0], str) else {}
        outputs = [[len(each)] for each in given] if texts else given
        rows = pa.table(
            {
                "prediction_id": names,
                "predicted_at": pa.array([AT] * many, pa.timestamp("us", "UTC")),
                "version": [1] * many,
                "shadow": [False] * many,
                "unit": pa.nulls(many, pa.string()),
                "latency_ms": [1.0] * many,
                "outputs": pa.array(outputs, pa.list_(pa.float32())),
                **labels,
                **texts,
            }
        )
        found.append(score(rows, loss=policy.loss, clip=policy.clip, cap=policy.loss_cap).loss)
    return found


def verdicts(outcome: Outcome, runs: int, noise: tuple[float, float], seed: int) -> tuple[float, float]:
    """Shares of rollouts in which the second version is ever shown to be better, and ever to be worse, looking ten times."""
    policy = RolloutPolicy(alpha=ALPHA, dependence="unit", burn_in=100, planned_labels=300)
    better = worse = 0
    for run in range(runs):
        if run % AT_ONCE == 0:
            champion, challenger = losses(outcome, AT_ONCE * LOOKS * BY_LOOK, noise, (seed, run))
        sums, found = PairedLoss(), []
        for look in range(LOOKS):
            first = (run % AT_ONCE * LOOKS + look) * BY_LOOK
            rows = slice(first, first + BY_LOOK)
            units = [str(place) for place in range(BY_LOOK)]
            sums += PairedLoss.of_cohort(
                champion[rows], challenger[rows], units, pairs=BY_LOOK, requests=BY_LOOK
            )
            found.append(improvement(sums, policy))
        seen = [one for one in found if one is not None]
        better += any(one.lower > 0 for one in seen)
        worse += any(one.upper < 0 for one in seen)
    return better / runs, worse / runs


def test_every_outcome_is_simulated() -> None:
    assert set(SIMULATED) == set(MEANINGS) == set(get_args(Outcome))


@pytest.mark.parametrize("outcome", MEANINGS)
def test_a_better_challenger_is_seen_and_an_equal_one_hardly_ever(outcome: Outcome) -> None:
    better, worse = verdicts(outcome, runs=20, noise=(1.5, 0.0), seed=1)
    assert (better > 0.8, worse) == (True, 0.0)
    equal = verdicts(outcome, runs=60, noise=(0.3, 0.3), seed=2)
    # 60 null runs: rejections <= alpha + 4 s.e.
    assert max(equal) <= ALPHA + 4 * math.sqrt(ALPHA * (1 - ALPHA) / 60)


@pytest.mark.proof
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("outcome", MEANINGS)
def test_an_equal_challenger_is_decided_on_no_more_often_than_alpha(outcome: Outcome) -> None:
    for noise in (0.05, 0.3, 1.0):
        # 1,500 null runs: rejections <= alpha + 4 s.e.
        equal = verdicts(outcome, runs=1_500, noise=(noise, noise), seed=3)
        assert max(equal) <= ALPHA + 4 * math.sqrt(ALPHA * (1 - ALPHA) / 1_500)
