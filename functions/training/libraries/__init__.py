"""Trainers of other libraries: XGBoost, LightGBM, and any estimator or pipeline of scikit-learn.

Each is a value whose fields are its parameters. The library is imported when it trains, not before.
"""

from toque.functions.training.libraries.boosting import LightGBM, XGBoost
from toque.functions.training.libraries.sklearn import Sklearn

__all__ = ["LightGBM", "Sklearn", "XGBoost"]
