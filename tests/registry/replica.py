"""A predictor's engine on a registry, with a model that returns its input."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from toque.ray_apps.predictor.versions.engine import Engine
from toque.registry import ObjectStore, Registry, Signature

_SPEC = {"datatype": "FP32", "shape": [-1, 1]}
SIGNATURE = Signature.model_validate(
    {"inputs": [{"name": "x", **_SPEC}], "outputs": [{"name": "y", **_SPEC}], "example": {"x": [[1.0]]}}
)


class Echo:
    def predict(self, inputs: Any) -> dict[str, Any]:
        return {"y": inputs["x"]}


def replica(store: ObjectStore, scratch: Path, clock: Callable[[], float]) -> Engine:
    """The engine of a replica that serves the model `m`."""
    registry = Registry(store, actor="replica")
    return Engine("m", registry, lambda _folder, _signature: Echo(), scratch=scratch, clock=clock)


def champion(engine: Engine) -> int | None:
    """Version that answers, after the engine has read the journal and loaded what it could."""
    engine.follow_once()
    engine.load_wanted()
    found: int | None = engine.describe()["champion"]
    return found
