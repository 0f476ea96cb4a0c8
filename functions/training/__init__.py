"""Training of models from training sets by any trainer, registered as versions in formats that hold no code.

The package knows tables, the registry and Ray Train. It must not know how a model is served or rolled out. torch
and Ray Train are imported when something is trained or scored, not before: most processes only know which functions exist.
"""

from functions.evaluation.meanings import Outcome
from functions.model_formats.load import ScoringModel, example_arrays, load
from functions.training.errors import ArtifactRefused, TrainingDataError, TrainingDiverged, TrainingError
from functions.training.libraries import LightGBM, Sklearn, XGBoost
from functions.training.llm import FineTune, Lora, Preference, TextClassifier, fine_tune, serve_fine_tune
from functions.training.model import train_model
from functions.training.params import RecipeParams, TabularParams
from functions.training.recipe.recipe import Recipe
from functions.training.recipe.train import train_recipe
from functions.training.recipe.trainer import RecipeTrainer
from functions.training.request import TrainingRequest, TrialStopped
from functions.training.tabular.train import train_tabular
from functions.training.trained import Trained
from functions.training.trainer import FunctionTrainer, Trainer

__all__ = [
    "ArtifactRefused",
    "FineTune",
    "FunctionTrainer",
    "LightGBM",
    "Lora",
    "Outcome",
    "Preference",
    "Recipe",
    "RecipeParams",
    "RecipeTrainer",
    "ScoringModel",
    "Sklearn",
    "TabularParams",
    "TextClassifier",
    "Trained",
    "Trainer",
    "TrainingDataError",
    "TrainingDiverged",
    "TrainingError",
    "TrainingRequest",
    "TrialStopped",
    "XGBoost",
    "example_arrays",
    "fine_tune",
    "load",
    "serve_fine_tune",
    "train_model",
    "train_recipe",
    "train_tabular",
]
