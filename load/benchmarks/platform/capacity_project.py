"""Project of `toque.load.benchmarks.platform.capacity`: a cheap and a dear model, each in one replica and in two."""

from toque.functions.placement import Placement
from toque.load.unmonitored import unmonitored

FEATURES: list[object] = []
REPLICAS = {"small-1": 1, "small-2": 2, "wide-1": 1, "wide-2": 2}
MODELS = [
    unmonitored(name, Placement(min_replicas=count, max_replicas=count)) for name, count in REPLICAS.items()
]
