"""Sweeps of small networks whose trials train stacked: many in one process, as one network whose weights have an axis of trials.

The package knows the tabular network and ASHA. It must not know what a sweep is for.
"""

from functions.tuning.stacked.pool import run_stacked
from functions.tuning.stacked.states import StackStates

__all__ = ["StackStates", "run_stacked"]
