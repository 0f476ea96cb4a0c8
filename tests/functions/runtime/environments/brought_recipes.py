"""A project whose recipe needs a package that the platform does not have."""

from tests.functions.training.recipes import SumRecipe
from toque.functions.training.recipe.recipe import Recipe


class BroughtSums(SumRecipe):
    """Sums times what the package `tiny` says, in every worker."""

    def task(self):
        import tiny  # late: of the submission's environment

        return type(super().task())(self.scale * tiny.SCALE)


RECIPES: dict[str, type[Recipe]] = {"brought": BroughtSums}
