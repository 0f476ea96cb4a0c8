"""How well what was retrieved answers what was relevant: hit, nDCG and reciprocal rank, with intervals. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from toque.functions.evaluation.errors import EvaluationError
from toque.functions.evaluation.metrics.probabilities import Interval

__all__ = ["RetrievalScores", "StepScore", "score_retrieval", "score_step"]

_RESAMPLES, _TAIL = 2_000, 2.5


@dataclass(frozen=True, slots=True)
class StepScore:
    """Scores of what was found for one question. hit: whether anything relevant was found; ndcg, reciprocal_rank: how far up."""

    hit: float
    ndcg: float
    reciprocal_rank: float


class RetrievalScores(BaseModel):
    """Mean scores over questions, each with a 95 % bootstrap interval. k: places that were looked at."""

    model_config = ConfigDict(frozen=True)

    questions: int
    k: int
    hit: Interval
    ndcg: Interval
    reciprocal_rank: Interval


def score_step(found: Sequence[str], relevant: Collection[str], *, k: int) -> StepScore:
    """Score what was found for one question, nearest first. relevant: what should be; each counts once, where it is first.

    nDCG with a gain of 1 for what is relevant: 1 if the first places have it all, in any order.
    Source: Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques, 2002.
    Raises: EvaluationError if nothing is relevant.
    """
    wanted = set(relevant)
    if not wanted:
        raise EvaluationError("nothing is relevant: leave out questions to which there is no answer")
    unique = list(dict.fromkeys(found))[:k]
    places = [place for place, each in enumerate(unique) if each in wanted]
    gain = sum(1 / np.log2(place + 2) for place in places)
    best = sum(1 / np.log2(place + 2) for place in range(min(len(wanted), k)))
    return StepScore(float(bool(places)), float(gain / best), 1 / (places[0] + 1) if places else 0.0)


def score_retrieval(steps: Sequence[StepScore], *, k: int, seed: int = 0) -> RetrievalScores:
    """Average the scores of questions. Raises: EvaluationError for none."""
    if not steps:
        raise EvaluationError("no questions to score retrieval by")
    values = np.array([(each.hit, each.ndcg, each.reciprocal_rank) for each in steps])  # [questions, 3]
    picked = np.random.default_rng(seed).integers(len(values), size=(_RESAMPLES, len(values)))
    low, high = np.percentile(values[picked].mean(axis=1), [_TAIL, 100 - _TAIL], axis=0)
    intervals = [
        Interval(estimate=float(mean), low=float(under), high=float(over))
        for mean, under, over in zip(values.mean(axis=0), low, high, strict=True)
    ]
    return RetrievalScores(
        questions=len(steps), k=k, hit=intervals[0], ndcg=intervals[1], reciprocal_rank=intervals[2]
    )
