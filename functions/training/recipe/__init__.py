"""Training of a user's own network, described as a recipe of the project."""

from toque.functions.training.recipe.recipe import Recipe

__all__ = ["Recipe"]
