"""Example project that puts the flights of a day to one destination in order: a ranking by XGBoost under the platform's whole loop.

The flights are those that left New York in 2013. `loop` plays five weeks in one process: a sweep, the gate, daily requests and what
travellers chose; then travellers want to leave after work, the monitor sees it, and a challenger goes through shadow and canary to
promotion. What is judged is a request, not an item.
"""

from examples.ranking.loop import FEATURES, MODELS

__all__ = ["FEATURES", "MODELS"]
