"""Models of the projects that platforms under load run."""

from __future__ import annotations

from toque.functions.placement import Placement
from toque.functions.project import ModelDefinition


def unmonitored(name: str, placement: Placement | None = None) -> ModelDefinition:
    """Define a model that is served and nothing else: without monitors, retraining or features."""
    return ModelDefinition(
        name=name,
        service="none",
        entities="none",
        label="y",
        numeric=("x",),
        monitors=(),
        retraining=None,
        placement=placement or Placement(),
    )
