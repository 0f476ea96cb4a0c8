"""Training of a user's own network, described as a recipe of the project."""

from typing import TYPE_CHECKING

from functions.renamed import moved_names
from functions.training.recipe.recipe import Recipe

__all__ = ["Recipe"]

if not TYPE_CHECKING:  # a type checker must not take every name as there
    __getattr__ = moved_names(__name__, "functions.training.recipe.train")
