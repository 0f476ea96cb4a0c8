"""What a model's outcome says about its monitors and rollout: losses that follow from it, and settings without a meaning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from functions.evaluation.gate import Gate
from functions.monitoring import EstimateMonitor
from functions.rollout import RolloutPolicy
from functions.training.trainer import Outcome


def with_loss_of(outcome: Outcome, rollout: RolloutPolicy, monitors: Sequence[Any]) -> dict[str, Any]:
    """Set the loss of an outcome wherever none was named; returns the fields of a definition that change."""
    if outcome != "number":
        return {}
    changed = tuple(_with_loss(each) for each in monitors)
    return {"rollout": _with_loss(rollout), "monitors": changed}


def meaningless(outcome: Outcome, gate: Gate, rollout: RolloutPolicy, monitors: Sequence[Any]) -> list[str]:
    """Name the settings that have no meaning for an outcome, each with what to do about it."""
    found = [f"gate.{name}: leave it out" for name in gate.unmeasurable(outcome)]
    wanted = "squared_error" if outcome == "number" else "log_loss"
    for where, each in [("rollout", rollout), *((f"monitor {each.kind!r}", each) for each in monitors)]:
        loss = getattr(each, "loss", wanted)
        if loss != wanted and (outcome != "binary"):
            found.append(f"{where}: loss={loss!r}, which needs {_NEEDS[loss]}: use {wanted!r}")
    if outcome == "multiclass" and any(isinstance(each, EstimateMonitor) for each in monitors):
        found.append(
            "monitor 'estimate': it knows one probability or a number, not several classes: leave it out"
        )
    return found


_NEEDS = {"log_loss": "probabilities", "squared_error": "one number a row"}


def _with_loss(settings: Any) -> Any:
    unnamed = "loss" in type(settings).model_fields and "loss" not in settings.model_fields_set
    return settings.model_copy(update={"loss": "squared_error"}) if unnamed else settings
