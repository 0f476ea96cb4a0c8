"""What a model's outcome says about its monitors and rollout: losses that follow from it, and settings without a meaning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from toque.functions.evaluation.gate import Gate
from toque.functions.evaluation.meanings import MEANINGS, Loss, Outcome
from toque.functions.rollout import RolloutPolicy


def with_loss_of(outcome: Outcome, rollout: RolloutPolicy, monitors: Sequence[Any]) -> dict[str, Any]:
    """Set the loss of an outcome wherever none was named; returns the fields of a definition that change."""
    loss = MEANINGS[outcome].losses[0]
    changed = tuple(_with_loss(each, loss) for each in monitors)
    return {"rollout": _with_loss(rollout, loss), "monitors": changed}


def meaningless(outcome: Outcome, gate: Gate, rollout: RolloutPolicy, monitors: Sequence[Any]) -> list[str]:
    """Name the settings that have no meaning for an outcome, each with what to do about it."""
    meaning = MEANINGS[outcome]
    found = [f"gate.{name}: {remedy}" for name, remedy in gate.unmeasurable(outcome).items()]
    for where, each in [("rollout", rollout), *((f"monitor {each.kind!r}", each) for each in monitors)]:
        loss = getattr(each, "loss", meaning.losses[0])
        if loss not in meaning.losses:
            found.append(f"{where}: loss={loss!r}, which needs {_NEEDS[loss]}: use {meaning.losses[0]!r}")
    refused = {aspect.removeprefix("monitor."): text for aspect, text in meaning.refused.items()}
    found += [f"monitor {each.kind!r}: {refused[each.kind]}" for each in monitors if each.kind in refused]
    return found


_NEEDS: dict[Loss, str] = {
    "log_loss": "probabilities",
    "squared_error": "one number a row",
    "poisson_deviance": "a rate of counts",
    "ndcg_loss": "a score for each item of a request",
    "cosine_distance": "a vector for each row",
    "euclidean_distance": "a vector for each row",
    "edit_distance": "a text for each row",
    "token_distance": "a text for each row",
    "mismatch": "a text for each row",
}


def _with_loss(settings: Any, loss: Loss) -> Any:
    if (
        "loss" not in type(settings).model_fields
        or "loss" in settings.model_fields_set
        or settings.loss == loss
    ):
        return settings
    return settings.model_copy(update={"loss": loss})
