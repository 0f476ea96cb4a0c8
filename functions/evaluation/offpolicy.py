"""Off-policy estimates of what a new policy would earn, from the log of the old one: actions, their chances, rewards.

w: the weight of a row, the new policy's chance of the logged action over the old one's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from functions.evaluation.errors import EvaluationError
from functions.stats import Effect, Moments, ratio
from registry.models.traffic import BY_RULE

Floats = npt.NDArray[np.float64]
_MIN_EFFECTIVE_ROWS = 30.0  # from which a normal interval means something
_ROUNDING = 1e-9
_Z = 1.959963984540054


class OffPolicy(BaseModel):
    """Mean reward that the new policy would have earned, with its 95 % interval for one look.

    effective_rows: (Σw)² / Σw², the number of the new policy's own rows that the log is worth. mean_weight: near 1 if the
    logged chances are right. sufficient: whether effective rows are enough and the interval is finite; if not, conclude
    nothing.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    estimate: float
    low: float
    high: float
    rows: int
    effective_rows: float
    mean_weight: float
    max_weight: float
    sufficient: bool


def ips(reward: npt.ArrayLike, logged: npt.ArrayLike, target: npt.ArrayLike) -> OffPolicy:
    """Estimate by inverse propensity score, the mean of w·r: unbiased, and of high variance where weights are large.

    reward: (rows,). logged: (rows,) chance that the old policy gave the action it took, above 0. target: (rows,) the new
    policy's chance of that same action.
    Raises: EvaluationError if there are no rows, a value is no number, or a chance is out of range.
    Source: Horvitz and Thompson, A generalization of sampling without replacement, 1952.
    """
    r, w = _weighted(reward, logged, target)
    return _found(_mean(w * r), w)


def snips(reward: npt.ArrayLike, logged: npt.ArrayLike, target: npt.ArrayLike) -> OffPolicy:
    """Estimate by the self-normalised score Σw·r / Σw, error by the delta method: a little bias, far less variance.

    Arguments and Raises: as `ips`; also if no weight is above 0.
    Source: Swaminathan and Joachims, The self-normalized estimator for counterfactual learning, 2015.
    """
    r, w = _weighted(reward, logged, target)
    if not w.sum() > 0:
        raise EvaluationError("the new policy never takes a logged action: the log says nothing about it")
    return _found(ratio(w * r, w), w)


def doubly_robust(
    reward: npt.ArrayLike,
    logged: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    model_logged: npt.ArrayLike,
    model_target: npt.ArrayLike,
) -> OffPolicy:
    """Estimate by a reward model that the log corrects, the mean of q_target + w·(r − q_logged).

    Unbiased if the chances or the model are right. model_logged: (rows,) reward that a model, learnt elsewhere, expects of the logged
    action; model_target: (rows,) that it expects of the new policy.
    Other arguments and Raises: as `ips`.
    Source: Dudík, Langford and Li, Doubly robust policy evaluation and learning, 2011.
    """
    r, w = _weighted(reward, logged, target)
    q_logged, q_target = (_numbers(q, len(r), "model's reward") for q in (model_logged, model_target))
    return _found(_mean(q_target + w * (r - q_logged)), w)


def judge_split(
    rows: pa.Table,
    reward: npt.ArrayLike,
    target: Mapping[str, float],
    *,
    estimate: Callable[[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike], OffPolicy] = snips,
) -> OffPolicy:
    """Estimate from the prediction log what another split would have earned, by the propensity that stands in each row.

    rows: of one model and one rollout, with the columns `arm` and `propensity`. reward: (rows,). target: the new split's chance
    of each arm; 0 for arms that it does not name. Rows that were not drawn have no propensity and are left out: shadows, versions
    by number, and rows of releases that did not log it. So are those that a rule sent, which no split decides.
    Raises: EvaluationError if no row is left, an arm of the target is in none of them, or its chances sum to more than 1.
    """
    arms = rows["arm"].to_numpy(zero_copy_only=False).astype(str)
    chance = rows["propensity"].to_numpy(zero_copy_only=False).astype(np.float64)
    drawn = ~np.isnan(chance) & ~np.char.startswith(arms, BY_RULE)
    if not drawn.any():
        raise EvaluationError(
            f"none of {len(arms)} rows has a propensity: nothing is known of how they were drawn"
        )
    unknown = sorted(set(target) - set(arms[drawn]))
    if unknown or math.fsum(target.values()) > 1 + _ROUNDING:
        raise EvaluationError(
            f"target={dict(target)!r}: chances sum to at most 1, of arms in the log {sorted(set(arms[drawn]))}"
        )
    new = np.array([target.get(arm, 0.0) for arm in arms[drawn]])
    return estimate(_numbers(reward, len(arms), "reward")[drawn], chance[drawn], new)


def _weighted(reward: npt.ArrayLike, logged: npt.ArrayLike, target: npt.ArrayLike) -> tuple[Floats, Floats]:
    r = _numbers(reward, None, "reward")
    if not len(r):
        raise EvaluationError("an off-policy estimate needs logged rows, got none")
    old, new = (
        _numbers(chance, len(r), name)
        for chance, name in ((logged, "logged chance"), (target, "target chance"))
    )
    if not ((old > 0) & (old <= 1)).all():
        raise EvaluationError(
            f"logged chances lie in (0, 1], got {old.min()} to {old.max()}: what was never tried cannot be judged"
        )
    if not ((new >= 0) & (new <= 1)).all():
        raise EvaluationError(f"target chances lie in [0, 1], got {new.min()} to {new.max()}")
    return r, new / old


def _numbers(values: npt.ArrayLike, rows: int | None, what: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or (rows is not None and len(array) != rows) or not np.isfinite(array).all():
        raise EvaluationError(
            f"need one finite {what} for each of {rows if rows is not None else 'the'} rows, got shape {array.shape} "
            f"with {int((~np.isfinite(array)).sum())} that are no numbers"
        )
    return array


def _mean(values: Floats) -> Effect:
    moments = Moments.of(values)
    return Effect(moments.mean, moments.standard_error if moments.n > 1 else math.inf, moments.n)


def _found(effect: Effect, w: Floats) -> OffPolicy:
    squares = float(w @ w)
    effective = float(w.sum() ** 2 / squares) if squares else 0.0
    radius = _Z * effect.standard_error
    return OffPolicy(
        estimate=effect.estimate,
        low=effect.estimate - radius,
        high=effect.estimate + radius,
        rows=effect.n,
        effective_rows=effective,
        mean_weight=float(w.mean()),
        max_weight=float(w.max()),
        sufficient=effective >= _MIN_EFFECTIVE_ROWS and effect.sufficient,
    )
