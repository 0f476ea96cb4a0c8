"""Off-policy estimates of what a new policy would earn, from the log of the old one: actions, their chances, rewards.

w: the weight of a row, the new policy's chance of the logged action over the old one's. Rows of one unit, such as a user that comes
back, are one observation: they are summed by `units` before anything is said of how sure an estimate is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from toque.functions.evaluation.errors import EvaluationError
from toque.functions.evaluation.realised_loss import request_of
from toque.functions.stats import ratio
from toque.functions.stats.comparison.cluster_sums import exact_sum
from toque.registry.models.traffic import BY_RULE

Floats = npt.NDArray[np.float64]
_MIN_EFFECTIVE_ROWS = 30.0  # from which a normal interval means something
_ROUNDING = 1e-9
_Z = 1.959963984540054


class Estimate(Protocol):
    """An estimate such as `ips` or `snips`."""

    def __call__(
        self,
        reward: npt.ArrayLike,
        logged: npt.ArrayLike,
        target: npt.ArrayLike,
        /,
        *,
        units: npt.ArrayLike | None,
    ) -> OffPolicy:
        """Estimate from the rewards, and the chances of the old and the new policy."""
        ...


class OffPolicy(BaseModel):
    """Mean reward of a row that the new policy would have earned, with its 95 % interval for one look.

    units: independent observations behind it. effective_rows: (Σw)² / Σw² over units, the number of the new policy's own that the
    log is worth. mean_weight: near 1 if the
    logged chances are right. sufficient: whether effective rows are enough and the interval is finite; if not, conclude
    nothing.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    estimate: float
    low: float
    high: float
    rows: int
    units: int
    effective_rows: float
    mean_weight: float
    max_weight: float
    sufficient: bool


def ips(
    reward: npt.ArrayLike, logged: npt.ArrayLike, target: npt.ArrayLike, *, units: npt.ArrayLike | None = None
) -> OffPolicy:
    """Estimate by inverse propensity score, the mean of w·r: unbiased, and of high variance where weights are large.

    reward: (rows,). logged: (rows,) chance that the old policy gave the action it took, above 0. target: (rows,) the new
    policy's chance of that same action. units: (rows,) who each row is about; None: each row is a unit of its own.
    Raises: EvaluationError if there are no rows, a value is no number, or a chance is out of range.
    Source: Horvitz and Thompson, A generalization of sampling without replacement, 1952.
    """
    r, w = _weighted(reward, logged, target)
    unit = _units(units, len(r))
    return _estimate(w * r, np.ones(len(r)), w, unit)


def snips(
    reward: npt.ArrayLike, logged: npt.ArrayLike, target: npt.ArrayLike, *, units: npt.ArrayLike | None = None
) -> OffPolicy:
    """Estimate by the self-normalised score Σw·r / Σw, error by the delta method: a little bias, far less variance.

    Arguments and Raises: as `ips`; also if no weight is above 0.
    Source: Swaminathan and Joachims, The self-normalized estimator for counterfactual learning, 2015.
    """
    r, w = _weighted(reward, logged, target)
    if not w.sum() > 0:
        raise EvaluationError("the new policy never takes a logged action: the log says nothing about it")
    return _estimate(w * r, w, w, _units(units, len(r)))


def doubly_robust(
    reward: npt.ArrayLike,
    logged: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    model_logged: npt.ArrayLike,
    model_target: npt.ArrayLike,
    units: npt.ArrayLike | None = None,
) -> OffPolicy:
    """Estimate by a reward model that the log corrects, the mean of q_target + w·(r − q_logged).

    Unbiased if the chances or the model are right. model_logged: (rows,) reward that a model, learnt elsewhere, expects of the logged
    action; model_target: (rows,) that it expects of the new policy.
    Other arguments and Raises: as `ips`.
    Source: Dudík, Langford and Li, Doubly robust policy evaluation and learning, 2011.
    """
    r, w = _weighted(reward, logged, target)
    q_logged, q_target = (_numbers(q, len(r), "model's reward") for q in (model_logged, model_target))
    return _estimate(q_target + w * (r - q_logged), np.ones(len(r)), w, _units(units, len(r)))


def judge_split(
    rows: pa.Table,
    reward: npt.ArrayLike,
    target: Mapping[str, float],
    *,
    estimate: Estimate = snips,
) -> OffPolicy:
    """Estimate from the prediction log what another split would have earned, by the propensity that stands in each row.

    rows: of one model and one rollout, with the columns `arm` and `propensity`, and `unit` and `prediction_id` where units come back:
    a unit is one observation, and so are the rows of a request without one. reward: (rows,). target: the new split's chance
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
    units = _logged_units(rows)
    return estimate(
        _numbers(reward, len(arms), "reward")[drawn],
        chance[drawn],
        new,
        units=None if units is None else units[drawn],
    )


def _logged_units(rows: pa.Table) -> npt.NDArray[np.object_] | None:
    """Take the unit of each row (rows,), or its request; None where the rows were read without units."""
    if "unit" not in rows.column_names:
        return None
    unit = rows["unit"].to_numpy(zero_copy_only=False)
    ids = rows["prediction_id"].to_pylist() if "prediction_id" in rows.column_names else range(len(unit))
    return np.array(
        [own or f"request {request_of(str(name))}" for own, name in zip(unit, ids, strict=True)], dtype=object
    )


def _units(units: npt.ArrayLike | None, rows: int) -> npt.NDArray[np.int64]:
    """Number the unit of each row, (rows,)."""
    if units is None:
        return np.arange(rows)
    names = np.asarray(units)
    if names.shape != (rows,):
        raise EvaluationError(f"need one unit for each of {rows} rows, got shape {names.shape}")
    numbers: npt.NDArray[np.int64] = np.unique(names.astype(str), return_inverse=True)[1]
    return numbers


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


def _estimate(numerator: Floats, denominator: Floats, w: Floats, unit: npt.NDArray[np.int64]) -> OffPolicy:
    """Estimate Σ numerator / Σ denominator over rows, whose error is that of sums by unit."""
    effect = ratio(np.bincount(unit, weights=numerator), np.bincount(unit, weights=denominator))
    weights = np.bincount(unit, weights=w).astype(np.float64)
    squares = exact_sum(np.square(weights))
    effective = exact_sum(weights) ** 2 / squares if squares else 0.0
    radius = _Z * effect.standard_error
    return OffPolicy(
        estimate=effect.estimate,
        low=effect.estimate - radius,
        high=effect.estimate + radius,
        rows=len(w),
        units=effect.n,
        effective_rows=effective,
        mean_weight=float(w.mean()),
        max_weight=float(w.max()),
        sufficient=effective >= _MIN_EFFECTIVE_ROWS and effect.sufficient,
    )
