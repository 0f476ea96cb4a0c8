"""Bounds of what MLflow's clients send, which stays in the memory of all who follow a model or run."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from toque.ray_apps.mlflow import runs, versions, wire
from toque.ray_apps.mlflow.models import ModelTag

LONG_KEY, LONG_VALUE = "k" * (wire.MAX_KEY_CHARS + 1), "v" * (wire.MAX_VALUE_CHARS + 1)


@pytest.mark.parametrize("field", [{"key": LONG_KEY}, {"value": LONG_VALUE}], ids=["key", "value"])
@pytest.mark.parametrize(
    ("body", "where"),
    [
        (wire.Tag, {}),
        (ModelTag, {"name": "late"}),
        (versions.VersionTag, {"name": "late", "version": "1"}),
        (runs.RunKeyValue, {"run_id": "r"}),
    ],
)
def test_a_tag_has_a_bounded_key_and_value_wherever_it_is_sent(
    body: Any, where: dict[str, str], field: dict[str, str]
) -> None:
    longest = {"key": LONG_KEY[1:], "value": LONG_VALUE[1:]}
    assert body(**where, **longest).value == longest["value"]
    with pytest.raises(ValidationError, match="at most"):
        body(**where, **longest | field)
    with pytest.raises(ValidationError, match="at most"):
        versions.CreateVersion(name="late", source="runs:/r/model", tags=[longest | field])
