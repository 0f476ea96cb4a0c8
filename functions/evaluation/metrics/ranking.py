"""Metrics of the order in which a request's items are put, as pure functions of relevances and scores.

relevance, score: (requests, items), NaN beyond a request's items; a relevance is an integer from 0 to 31, a higher score comes
first. Items of one score stand in any order with equal chance, so that a model which tells nothing apart gains nothing by it.
A request without a relevant item has no wrong order: its nDCG is 1. No function returns a number for no requests.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from toque.functions.evaluation.errors import EvaluationError

Floats = npt.NDArray[np.floating]
Padded = npt.NDArray[np.float64]

TOP = 10
"""Places that nDCG and recall look at."""
MOST_RELEVANT = 31
"""Greatest relevance: its gain is 2 to that power, as in XGBoost and LightGBM."""


def padded(values: Floats, request: npt.NDArray[np.integer]) -> Padded:
    """Arrange values (rows,) by request, (requests, items), in the order in which requests first appear; NaN beyond its items.

    request: (rows,) number of each row's request.
    """
    _, first, code, size = np.unique(request, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    order = np.argsort(rank[code], kind="stable")
    sizes = size[np.argsort(first, kind="stable")]
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    found = np.full((len(first), int(size.max(initial=0))), np.nan)
    found[rank[code][order], place] = np.asarray(values, dtype=np.float64)[order]
    return found


def ndcg_loss(relevance: Padded, score: Padded) -> Padded:
    """1 − nDCG@10 of each request, from 0 to 1. Raises: EvaluationError for no requests, or values that do not fit.

    Source: Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques, 2002; ties as in McSherry and Najork,
    Computing information retrieval performance measures efficiently in the presence of tied scores, 2008.
    """
    y, s = _checked(relevance, score)
    gain = np.where(np.isfinite(y), 2.0 ** np.nan_to_num(y) - 1.0, 0.0)
    reached = (gain * _mean_weight(s, _discount(y.shape[1]))).sum(axis=1)
    best = (-np.sort(-gain, axis=1) * _discount(y.shape[1])).sum(axis=1)
    loss: Padded = np.where(best > 0, 1.0 - reached / np.where(best > 0, best, 1.0), 0.0)
    return np.clip(loss, 0.0, 1.0)


def mean_ndcg_loss(relevance: Padded, score: Padded) -> float:
    """Mean of 1 − nDCG@10 over requests. Raises: EvaluationError as `ndcg_loss`."""
    return float(ndcg_loss(relevance, score).mean())


def ndcg(relevance: Padded, score: Padded) -> float:
    """Mean nDCG@10 over all requests. Raises: EvaluationError as `ndcg_loss`."""
    return 1.0 - mean_ndcg_loss(relevance, score)


def mrr(relevance: Padded, score: Padded) -> float:
    """Mean of 1 / place of the first relevant item, the middle place among equal scores, over requests that have one.

    Raises: EvaluationError as `ndcg_loss`, and if no request has a relevant item.
    """
    y, s = _with_relevant(*_checked(relevance, score))
    place = _mean_weight(s, np.arange(1.0, y.shape[1] + 1.0))
    first = np.where(y > 0, place, np.inf).min(axis=1)
    return float(np.mean(1.0 / first))


def recall(relevance: Padded, score: Padded) -> float:
    """Share of a request's relevant items among its first 10, mean over requests that have one. Raises: as `mrr`."""
    y, s = _with_relevant(*_checked(relevance, score))
    within = _mean_weight(s, (np.arange(y.shape[1]) < TOP).astype(np.float64))
    relevant = y > 0
    return float(np.mean((within * relevant).sum(axis=1) / relevant.sum(axis=1)))


RANKING_METRICS: dict[str, Callable[[Padded, Padded], float]] = {
    "ndcg": ndcg,
    "mrr": mrr,
    "recall": recall,
    "ndcg_loss": mean_ndcg_loss,
}


def _discount(items: int) -> Padded:
    """Weight of each place (items,): 1 / log2(place + 1) for the first 10, then 0."""
    place = np.arange(items)
    return np.where(place < TOP, 1.0 / np.log2(place + 2.0), 0.0)


def _mean_weight(score: Padded, weight: Padded) -> Padded:
    """Mean weight of the places that each item may stand in (requests, items), over all orders of equal scores."""
    held = np.where(np.isfinite(score), score, -np.inf)
    order = np.argsort(-held, axis=1, kind="stable")
    ranked = np.take_along_axis(held, order, axis=1)
    changes = np.ones(ranked.shape, dtype=np.int64)
    changes[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    group = np.cumsum(changes.ravel()) - 1  # every request begins a new one
    size = np.bincount(group)
    total = np.bincount(group, weights=np.broadcast_to(weight, ranked.shape).ravel())
    found = np.empty(ranked.shape)
    np.put_along_axis(found, order, (total / size)[group].reshape(ranked.shape), axis=1)
    return found


def _with_relevant(y: Padded, s: Padded) -> tuple[Padded, Padded]:
    some = (y > 0).any(axis=1)
    if not some.any():
        raise EvaluationError(
            f"none of {len(y)} requests has a relevant item: give requests with labels above 0"
        )
    return y[some], s[some]


def _checked(relevance: Padded, score: Padded) -> tuple[Padded, Padded]:
    y, s = np.asarray(relevance, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if y.shape != s.shape or y.ndim != 2 or y.size == 0:  # noqa: PLR2004 - requests and items
        raise EvaluationError(
            f"need relevances and scores of the same requests and at least one, got {y.shape} and {s.shape}"
        )
    item = np.isfinite(y)
    if not np.isfinite(s[item]).all():
        raise EvaluationError(
            f"{int((~np.isfinite(s[item])).sum())} of {int(item.sum())} scores are no numbers"
        )
    strange = item & ((y < 0) | (y > MOST_RELEVANT) | (y != np.floor(y)))
    if strange.any():
        raise EvaluationError(
            f"relevances must be integers from 0 to {MOST_RELEVANT}, found {np.unique(y[strange])[:5].tolist()}"
        )
    return y, s
