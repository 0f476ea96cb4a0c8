"""Sweeps over the parameters of any trainer, stopped early by ASHA; of the tabular network also trained as a population.

The package knows training and Ray Tune. It must not know what becomes of the best settings.
"""

from toque.functions.tuning.jobs import Stretch, Sweep, tune_tabular
from toque.functions.tuning.model import ModelSweep, ModelTrial, tune_model
from toque.functions.tuning.space import DEFAULT_SPACE, Choice, Exploit, Limits, Range, Search, Space, Trial

__all__ = [
    "DEFAULT_SPACE",
    "Choice",
    "Exploit",
    "Limits",
    "ModelSweep",
    "ModelTrial",
    "Range",
    "Search",
    "Space",
    "Stretch",
    "Sweep",
    "Trial",
    "tune_model",
    "tune_tabular",
]
