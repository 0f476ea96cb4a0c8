"""Example project that predicts late flights at take-off: boosted trees under the platform's whole loop.

Begun by `toque init flights_xgboost --from flights.csv`, then edited: XGBoost as the trainer, rows that arrive day by day, rules for
challengers. `loop` plays five weeks in one process: a sweep, the gate, daily answers and labels; then the approach is closed in the
afternoons, the monitors see it, and a challenger goes through shadow and canary to promotion.
"""

from examples.flights_xgboost.loop import FEATURES, MODELS

__all__ = ["FEATURES", "MODELS"]
