"""Training of models from training sets by any trainer, registered as versions in formats that hold no code.

The package knows tables, the registry and Ray Train. It must not know how a model is served or rolled out. torch
and Ray Train are imported when something is trained or scored, not before: most processes only know which functions exist.
"""

from toque.functions.evaluation.meanings import Outcome
from toque.functions.model_formats.load import ScoringModel, example_arrays, load
from toque.functions.training.errors import (
    ArtifactRefused,
    TrainingDataError,
    TrainingDiverged,
    TrainingError,
)
from toque.functions.training.libraries import LightGBM, Sklearn, XGBoost
from toque.functions.training.llm import (
    FineTune,
    Lora,
    Preference,
    TextClassifier,
    fine_tune,
    serve_fine_tune,
)
from toque.functions.training.model import train_model
from toque.functions.training.params import RecipeParams
from toque.functions.training.recipe.recipe import Recipe
from toque.functions.training.recipe.train import RecipeTrainer, train_recipe
from toque.functions.training.request import TrainingRequest, TrialStopped
from toque.functions.training.tabular.params import TabularParams
from toque.functions.training.tabular.train import train_tabular
from toque.functions.training.trainer import FunctionTrainer, Trained, Trainer

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
