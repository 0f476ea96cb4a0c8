"""Trainer of any estimator or pipeline of scikit-learn that a project's factory makes, saved by skops."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, field_serializer

from toque.functions.model_formats.flavors import SKOPS_FILE, sklearn_rows
from toque.functions.runtime.declaration.digest import digest_of
from toque.functions.runtime.reference import reference
from toque.functions.training.errors import TrainingDataError, TrainingError
from toque.functions.training.trained import Trained
from toque.functions.training.trainer import Trainer

if TYPE_CHECKING:
    from toque.functions.training.request import TrainingRequest


class Sklearn(Trainer):
    """Trainer of the estimator that `make(**values)` returns, which has fit and predict_proba (of a number or a count: predict).

    It is fitted on a table with the feature columns by name (numbers float32 with NaN, texts with None), as it will be asked; on
    plain numbers where a feature is a tensor. values: arguments of `make`, which sweeps may vary.
    """

    kind: ClassVar[str] = "sklearn"
    trusted_types: ClassVar[frozenset[str]] = frozenset(
        {
            "sklearn.tree._tree.Tree",
            "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        }
    )

    make: Callable[..., Any]
    values: dict[str, Any] = Field(default_factory=dict)

    @field_serializer("make")
    def _name(self, make: Callable[..., Any]) -> str:
        return reference(make)

    def __call__(self, request: TrainingRequest) -> Trained:
        """Fit the estimator on the rows to learn from, and save it."""
        from skops.io import dump  # late: an extra

        estimator = self.make(**self.values)
        classified = bool(request.kind.classes) or request.outcome == "binary"
        answers = "predict_proba" if classified else "predict"
        if not hasattr(estimator, "fit") or not hasattr(estimator, answers):
            raise TrainingError(
                f"{reference(self.make)} makes a {type(estimator).__name__}, which lacks fit or {answers}: an outcome of "
                f"{request.outcome!r} needs both"
            )
        rows = request.train_rows
        estimator.fit(sklearn_rows(request.signature, request.inputs(rows)), request.train_labels())
        dump(estimator, request.folder / SKOPS_FILE)
        return Trained()

    @property
    def code(self) -> str:
        """Digest of the factory's code."""
        return digest_of(self.make)

    @property
    def parameters(self) -> dict[str, Any]:
        """Arguments of the factory, and which rows are held out, by name."""
        own = {"make": reference(self.make)}
        return {**own, **self.values, **{name: getattr(self, name) for name in Trainer.model_fields}}

    def with_parameters(self, changes: Any) -> Self:
        """Make the trainer with some arguments changed. Raises: TrainingDataError for one that was not declared."""
        own = {name: value for name, value in changes.items() if name in Trainer.model_fields}
        values = {name: value for name, value in changes.items() if name not in own}
        unknown = sorted(set(values) - set(self.values))
        if unknown:
            raise TrainingDataError(
                f"{reference(self.make)} has no declared arguments {unknown}: give each its default in "
                f"Sklearn(make=…, values={{…}}); it has {sorted(self.values)}"
            )
        return self.model_copy(update={"values": {**self.values, **values}, **own})
