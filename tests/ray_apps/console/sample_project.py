"""Project of the console's sample platform: a module that executors can import, with objectives of one model."""

from datetime import timedelta
from types import SimpleNamespace

from tests.ray_apps.console.sample_predictions import MODEL
from toque.functions.rollout import RolloutPolicy, Slo

FEATURES: list[object] = []
MODELS = [
    SimpleNamespace(
        name=MODEL,
        rollout=RolloutPolicy(
            slos=(
                Slo(name="quick", target=0.9, slow_ms=1.0, window=timedelta(days=2)),
                Slo(name="answers", target=0.9, window=timedelta(days=2)),
            )
        ),
    )
]
