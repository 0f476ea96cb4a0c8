"""Example of a small language model, a user's network, data and settings as a recipe of a project.

The model learns from this repository's own notes. `python -m examples.gpt` trains it here; `--workers 2 --sharding shard`
splits it among the workers of a Ray cluster, with `--gpus 1` a GPU each. The loop, checkpoints, runs, cost and registration
are the platform's.
"""

from examples.gpt.recipe import GptRecipe

RECIPES = {"gpt": GptRecipe}

__all__ = ["RECIPES", "GptRecipe"]
