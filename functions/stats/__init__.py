"""Statistics that hold however often one looks: drift, change, and always-valid comparisons.

Pure functions and frozen values over numbers; nothing here knows of models, stores, clocks or Ray.
"""

from functions.stats import drift
from functions.stats.change import Adwin, Cusum, PageHinkley
from functions.stats.moments import CoMoments, Moments
from functions.stats.multiplicity import benjamini_hochberg, holm, k_of_n
from functions.stats.sketch import TableSketch, one_row_per_unit

__all__ = [
    "Adwin",
    "CoMoments",
    "Cusum",
    "Moments",
    "PageHinkley",
    "TableSketch",
    "benjamini_hochberg",
    "drift",
    "holm",
    "k_of_n",
    "one_row_per_unit",
]
