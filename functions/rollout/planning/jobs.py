"""Function that plans a rollout from the prediction log."""

from __future__ import annotations

from datetime import timedelta

from toque.functions.evaluation.errors import EvaluationError
from toque.functions.model_formats.versions import load_version
from toque.functions.prediction_log import outcomes
from toque.functions.rollout.budget import budget
from toque.functions.rollout.errors import RolloutError
from toque.functions.rollout.jobs import declared_policy, rollouts
from toque.functions.rollout.planning.plan import RolloutPlan, plan
from toque.functions.rollout.planning.replay import replayed_loss
from toque.functions.rollout.policy import RolloutPolicy
from toque.functions.runtime.context import context
from toque.functions.runtime.function import function

_COLUMNS = ("prediction_id", "version", "arm", "shadow", "unit", "predicted_at", "latency_ms", "outputs")
_VECTORS = ("numeric", "categorical")
_DEFAULT_EFFECT = 0.02  # of the champion's loss: the effect that is planned for, unless one is named


@function(http=True, timeout_s=300)
def plan_rollout(
    model: str,
    version: int,
    policy: RolloutPolicy | None = None,
    effect: float | None = None,
    days: int = 28,
) -> RolloutPlan:
    """Plan a rollout of `version` by `policy`: what it may be expected to find, and when; starts nothing.

    The logged vectors of the champion's past `days` are scored by `version`, and the rollout is simulated on noise as large
    as the differences had. A version that learnt from those days looks better on them than it is: believe the noise, and not
    `replayed`.
    policy: the one of the model's definition unless given.
    effect: improvement in mean loss that is looked for; 2 % of the champion's loss unless given.
    Raises: RolloutError if the log has labels of fewer than two cohorts, or lacks a column that the version reads; NotFound if there is no such version, or no champion.
    """
    used = context()
    registry = used.registry()
    champion = registry.traffic(model).champion.version
    now = used.clock()
    policy = policy or declared_policy(model)
    judged = policy.model_copy(
        update={"alpha": budget(rollouts(model).history(), policy, now).alpha or policy.alpha}
    )
    logged = registry.get_version(model, champion).signature
    if logged is None:
        raise RolloutError(f"{model}@{champion} has no signature, so its logged vectors cannot be read")
    try:
        loss = replayed_loss(
            lambda since, until: outcomes(
                used.store, model, since, until, labelled_only=False, columns=(*_COLUMNS, *_VECTORS)
            ),
            load_version(registry, registry.get_version(model, version)),
            judged,
            champion=champion,
            logged=logged,
            start=now - timedelta(days=days),
            now=now,
        )
    except EvaluationError as error:
        raise RolloutError(f"{model}@{version} cannot be planned from the log: {error}") from error
    wanted = effect if effect is not None else _DEFAULT_EFFECT * loss.champion_loss / max(loss.labels, 1)
    try:
        found = plan(loss, judged, wanted)
    except ValueError as error:
        raise RolloutError(f"{model}: {error}") from error
    cohort, unit = loss.by_cohort.standard_error(), loss.by_unit.standard_error()
    error_ = max(cohort, unit) if policy.dependence == "cohort" else unit
    return found.model_copy(update={"replayed": loss.by_unit.mean, "replayed_error": error_})
