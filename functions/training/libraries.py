"""Trainers by other libraries: boosted trees of XGBoost and LightGBM, and any estimator or pipeline of scikit-learn.

Boosted trees are stopped early on the rows held out, and take categories as they are. scikit-learn's are saved by skops.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_serializer

from toque.functions.evaluation.meanings import Outcome
from toque.functions.evaluation.metrics.ranking import TOP
from toque.functions.model_formats.flavors import SKOPS_FILE, Categories, number_rows, sklearn_rows
from toque.functions.training.errors import TrainingDataError, TrainingError
from toque.functions.training.request import LOSS, TrainingRequest
from toque.functions.training.trainer import Trained, Trainer
from toque.registry.code_digest import digest_of, reference

if TYPE_CHECKING:
    import pyarrow as pa


_PLAIN_NAME = re.compile(r"[A-Za-z0-9_]+")
Array = npt.NDArray[Any]
OBJECTIVES: dict[str, dict[Outcome, dict[str, str]]] = {
    "xgboost": {
        "binary": {"objective": "binary:logistic", "eval_metric": "logloss"},
        "multiclass": {"objective": "multi:softprob", "eval_metric": "mlogloss"},
        "multilabel": {"objective": "binary:logistic", "eval_metric": "logloss"},
        "number": {"objective": "reg:squarederror", "eval_metric": "rmse"},
        "vector": {"objective": "reg:squarederror", "eval_metric": "rmse"},
        "count": {"objective": "count:poisson", "eval_metric": "poisson-nloglik"},
        "ranking": {"objective": "rank:ndcg", "eval_metric": f"ndcg@{TOP}"},
    },
    "lightgbm": {
        "binary": {"objective": "binary", "metric": "binary_logloss"},
        "multiclass": {"objective": "multiclass", "metric": "multi_logloss"},
        "number": {"objective": "regression", "metric": "rmse"},
        "count": {"objective": "poisson", "metric": "poisson"},
        "ranking": {"objective": "lambdarank", "metric": "ndcg", "eval_at": str(TOP)},
    },
}
"""Objective and loss of each outcome that a library learns, by its own names."""


class BoostedTrees(Trainer):
    """Parameters that XGBoost and LightGBM share.

    rounds: trees at most, of several classes of each; early_stopping: rounds without a better loss on the rows held out
    before it stops; lr: what a tree counts; leaf_rows: weight (LightGBM: rows) that a leaf needs; row_share, column_share: drawn for
    each tree; l2: penalty on leaves; min_category_rows, max_categories: which texts are known; others count as missing.
    options: parameters of the library by its own names, such as {"gamma": 0.1}, which go before all others.
    """

    data_settings: ClassVar[frozenset[str]] = Trainer.data_settings | {"min_category_rows", "max_categories"}
    warm_starts: ClassVar[bool] = False

    rounds: int = Field(default=500, ge=1)
    early_stopping: int = Field(default=30, ge=1)
    lr: float = Field(default=0.1, gt=0.0)
    leaf_rows: float = Field(default=5.0, ge=0.0)
    row_share: float = Field(default=0.8, gt=0.0, le=1.0)
    column_share: float = Field(default=0.8, gt=0.0, le=1.0)
    l2: float = Field(default=1.0, ge=0.0)
    min_category_rows: int = Field(default=10, ge=1)
    max_categories: int = Field(default=1_000, ge=1)
    options: dict[str, Any] = Field(default_factory=dict)

    def check(self, outcome: Outcome, columns: Mapping[str, tuple[str, ...]]) -> None:  # noqa: ARG002 - it reads any
        """Check that the library has an objective for the outcome. Raises: ValueError."""
        if outcome not in OBJECTIVES[self.kind]:
            known = ", ".join(OBJECTIVES[self.kind])
            raise ValueError(
                f"{type(self).__name__} learns {known}, not {outcome!r}; declare another trainer, such as Sklearn(make=…)"
            )


class XGBoost(BoostedTrees):
    """Trainer of boosted trees by XGBoost, saved as `model.ubj`. max_depth: of a tree."""

    kind: ClassVar[str] = "xgboost"

    max_depth: int = Field(default=6, ge=1)

    def __call__(self, request: TrainingRequest) -> Trained:
        """Boost trees until the rows held out gain no more, and save those up to the best round."""
        import xgboost  # late: an extra

        rows = BoostingRows.of(request, self)
        kinds = ["c" if column in rows.categorical else "q" for column in range(rows.train.shape[1])]
        names = list(rows.names or ()) or None

        def matrix(values: Array, labels: Array, sizes: Array | None) -> Any:
            return xgboost.DMatrix(
                values,
                labels,
                feature_types=kinds,
                feature_names=names,
                enable_categorical=True,
                nthread=request.workers.threads,
                group=sizes,
            )

        class _Reports(xgboost.callback.TrainingCallback):
            def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:  # noqa: ARG002 - as it is called
                request.report(epoch, _losses(evals_log))
                return False

        train = matrix(rows.train, rows.train_labels, rows.train_sizes)
        valid = matrix(rows.valid, rows.valid_labels, rows.valid_sizes)
        booster = xgboost.train(
            {**_task(request, self.kind), **self._library_options(request.workers.threads), **self.options},
            train,
            num_boost_round=self.rounds,
            evals=[(train, "train"), (valid, "valid")],
            early_stopping_rounds=self.early_stopping,
            callbacks=[_Reports()],
            verbose_eval=False,
        )
        booster[: booster.best_iteration + 1].save_model(request.folder / "model.ubj")
        return Trained(best_epoch=booster.best_iteration)

    def _library_options(self, threads: int) -> dict[str, Any]:
        return {
            "eta": self.lr,
            "max_depth": self.max_depth,
            "min_child_weight": self.leaf_rows,
            "subsample": self.row_share,
            "colsample_bytree": self.column_share,
            "lambda": self.l2,
            "seed": self.seed,
            "nthread": threads,
            "tree_method": "hist",
        }


class LightGBM(BoostedTrees):
    """Trainer of boosted trees by LightGBM, saved as `model.txt`. leaves: of a tree."""

    kind: ClassVar[str] = "lightgbm"

    leaves: int = Field(default=31, ge=2)

    def __call__(self, request: TrainingRequest) -> Trained:
        """Boost trees until the rows held out gain no more, and save those up to the best round."""
        import lightgbm  # late: an extra

        rows = BoostingRows.of(request, self)
        names: Any = list(rows.names) if rows.names else "auto"
        options = {
            **_task(request, self.kind),
            **self._library_options(request.workers.threads),
            **self.options,
        }
        train = lightgbm.Dataset(
            rows.train,
            rows.train_labels,
            feature_name=names,
            categorical_feature=list(rows.categorical),
            params=options,
            free_raw_data=False,
            group=rows.train_sizes,
        )
        valid = lightgbm.Dataset(
            rows.valid, rows.valid_labels, reference=train, params=options, group=rows.valid_sizes
        )

        def report(state: Any) -> None:
            losses: dict[str, dict[str, list[float]]] = {}
            for name, metric, value, *_ in state.evaluation_result_list:
                losses.setdefault(name, {})[metric] = [value]
            request.report(state.iteration, _losses(losses))

        booster = lightgbm.train(
            options,
            train,
            num_boost_round=self.rounds,
            valid_sets=[train, valid],
            valid_names=["train", "valid"],
            callbacks=[report, lightgbm.early_stopping(self.early_stopping, verbose=False)],
        )
        booster.save_model(request.folder / "model.txt", num_iteration=booster.best_iteration)
        return Trained(best_epoch=booster.best_iteration - 1)

    def _library_options(self, threads: int) -> dict[str, Any]:
        return {
            "learning_rate": self.lr,
            "num_leaves": self.leaves,
            "min_data_in_leaf": int(self.leaf_rows),
            "bagging_fraction": self.row_share,
            "bagging_freq": 1,
            "feature_fraction": self.column_share,
            "lambda_l2": self.l2,
            "seed": self.seed,
            "num_threads": threads,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }


class Sklearn(Trainer):
    """Trainer of the estimator that `make(**values)` returns, which has fit and predict_proba (of a number or a count: predict).

    It is fitted on a table with the feature columns by name (numbers float32 with NaN, texts with None), as it will be asked; on
    plain numbers where a feature is a tensor. values: arguments of `make`, which sweeps may vary.
    """

    kind: ClassVar[str] = "sklearn"
    warm_starts: ClassVar[bool] = False
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


@dataclass(frozen=True, slots=True)
class BoostingRows:
    """Rows as a boosting library takes them: numbers (rows, columns), of which those numbered `categorical` are codes.

    train_sizes, valid_sizes: rows of each request of a ranking, which lie one after the other.
    """

    train: Array
    train_labels: Array
    valid: Array
    valid_labels: Array
    categorical: tuple[int, ...]
    names: tuple[str, ...] | None
    train_sizes: Array | None = None
    valid_sizes: Array | None = None

    @classmethod
    def of(cls, request: TrainingRequest, trainer: BoostedTrees) -> BoostingRows:
        """Encode the request's rows, and save the vocabulary beside the model. Raises: TrainingDataError."""
        train, valid = request.train_rows, request.valid_rows
        categories = _categories(request, train, trainer)
        numbers = len(request.numeric)
        names = None if request.tensors else (*request.numeric, *request.categorical)
        return cls(
            number_rows(request.signature, request.inputs(train), categories),
            request.train_labels(),
            number_rows(request.signature, request.inputs(valid), categories),
            request.labels(valid),
            tuple(range(numbers, numbers + len(request.categorical))),
            names if names and all(_PLAIN_NAME.fullmatch(name) for name in names) else None,
            request.group_sizes(train) if request.group else None,
            request.group_sizes(valid) if request.group else None,
        )


def _categories(request: TrainingRequest, rows: pa.Table, trainer: BoostedTrees) -> Categories | None:
    """Learn the known texts from the rows to learn from, and write them beside the model."""
    if not request.categorical:
        return None
    categories = Categories.of(
        request.categorical,
        request.inputs(rows)["categorical"],
        min_rows=trainer.min_category_rows,
        most=trainer.max_categories,
    )
    categories.save(request.folder)
    return categories


def _task(request: TrainingRequest, library: str) -> dict[str, Any]:
    """Options of a library that say the outcome."""
    several = {"num_class": len(request.classes)} if request.outcome == "multiclass" else {}
    return {**OBJECTIVES[library][request.outcome], **several}


def _losses(log: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """Latest losses of a library's evaluation log. Raises: TrainingError if one stopped being a number."""
    losses = {}
    for name in ("train", "valid"):
        metric, values = next(iter(log[name].items()))
        losses[name] = 1.0 - float(values[-1]) if metric.startswith("ndcg") else float(values[-1])
    if not all(np.isfinite(value) for value in losses.values()):
        raise TrainingError(f"the loss is {losses}: check the labels, or lower lr")
    return {"train_loss": losses["train"], LOSS: losses["valid"]}
