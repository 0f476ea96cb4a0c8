"""Names of the release before, in the packages whose names changed."""

from __future__ import annotations

import importlib

import pytest


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("functions.rollout", "Sight", "RolloutStatus"),
        ("functions.rollout", "Ticked", "TickResult"),
        ("functions.rollout", "Explained", "Explanation"),
        ("functions.monitoring", "Watched", "MonitorResult"),
        ("functions.monitoring", "Changed", "ChangeFindings"),
        ("functions.prediction_log", "Drained", "DrainResult"),
        ("functions.prediction_log", "made_within", "predicted_within"),
        ("functions.prediction_log", "micros", "epoch_us"),
        ("functions.reporting", "Happening", "TimelineEvent"),
        ("functions.retraining", "Inspected", "InspectionResult"),
        ("functions.retraining", "Retrained", "RetrainResult"),
    ],
)
def test_an_old_name_is_the_new_one_and_says_so(module: str, old: str, new: str) -> None:
    found = importlib.import_module(module)
    with pytest.warns(DeprecationWarning, match=f"{module}.{old} is now {module}.{new}"):
        assert getattr(found, old) is getattr(found, new)


def test_a_name_that_never_was_is_missing() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = importlib.import_module("functions.rollout").Nothing
