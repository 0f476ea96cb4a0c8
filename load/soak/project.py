"""Project of the soak: a model in two replicas, one that is retrained, and one that is asked by key."""

from __future__ import annotations

from toque.functions.placement import Placement
from toque.load.unmonitored import unmonitored

FEATURES: list[object] = []
STEADY, RETRAINED, KEYED = "mlp", "tabular", "forty-by-key"


MODELS = [
    unmonitored(name, Placement(min_replicas=replicas, max_replicas=replicas))
    for name, replicas in ((STEADY, 2), (RETRAINED, 1), (KEYED, 1))
]
