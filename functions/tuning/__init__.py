"""Sweeps over settings of the tabular network: many trials, stopped early by ASHA or trained as a population.

The package knows training and Ray Tune. It must not know what becomes of the best settings.
"""

from functions.tuning.jobs import Stretch, Sweep, tune_tabular
from functions.tuning.space import DEFAULT_SPACE, Choice, Exploit, Limits, Range, Search, Space, Trial

__all__ = [
    "DEFAULT_SPACE",
    "Choice",
    "Exploit",
    "Limits",
    "Range",
    "Search",
    "Space",
    "Stretch",
    "Sweep",
    "Trial",
    "tune_tabular",
]
