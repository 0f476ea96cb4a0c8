"""The kitchen: learns models from training sets, writes them as plain tensor programs, and reads them back.

It knows tables, the registry and Ray Train. It must not know who serves a model, nor how it is rolled out.
"""

from functions.training.errors import ArtifactRefused, TrainingDataError, TrainingDiverged, TrainingError
from functions.training.params import TabularParams
from functions.training.scoring import ScoringModel, example_arrays, load
from functions.training.tabular import Trained, train_tabular

__all__ = [
    "ArtifactRefused",
    "ScoringModel",
    "TabularParams",
    "Trained",
    "TrainingDataError",
    "TrainingDiverged",
    "TrainingError",
    "example_arrays",
    "load",
    "train_tabular",
]
