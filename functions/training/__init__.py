"""Training of models from training sets, exported as plain tensor programs and registered as versions.

The package knows tables, the registry and Ray Train. It must not know how a model is served or rolled out. torch
and Ray Train are imported when something is trained or scored, not before: most processes only know which functions exist.
"""

from functions.model_formats.load import ScoringModel, example_arrays, load
from functions.training.errors import ArtifactRefused, TrainingDataError, TrainingDiverged, TrainingError
from functions.training.params import RecipeParams, TabularParams
from functions.training.recipe.recipe import Recipe
from functions.training.recipe.train import train_recipe
from functions.training.tabular.train import train_tabular
from functions.training.trained import Trained

__all__ = [
    "ArtifactRefused",
    "Recipe",
    "RecipeParams",
    "ScoringModel",
    "TabularParams",
    "Trained",
    "TrainingDataError",
    "TrainingDiverged",
    "TrainingError",
    "example_arrays",
    "load",
    "train_recipe",
    "train_tabular",
]
