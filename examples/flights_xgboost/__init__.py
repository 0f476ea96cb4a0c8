"""Example project that predicts late flights with XGBoost: the features of `examples.flights`, another trainer.

Only the definition differs. `loop` sweeps, judges, and lets the version challenge the network of `examples.flights`.
"""

from examples.flights.features import FEATURES
from examples.flights_xgboost.model import MODELS

__all__ = ["FEATURES", "MODELS"]
