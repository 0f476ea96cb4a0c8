"""Trainer of a classifier of texts on a network of `transformers`; known without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, get_args

from pydantic import Field

from toque.functions.evaluation.meanings import Outcome
from toque.functions.model_formats.text_classifier import MOST_TEXTS
from toque.functions.training.llm.settings import Lora, Tuner
from toque.functions.training.params import RecipeParams
from toque.functions.training.trainer import Trained

if TYPE_CHECKING:
    from toque.functions.training.request import TrainingRequest

_LEARNT: tuple[Outcome, ...] = ("binary", "multiclass", "multilabel")


class TextClassifier(Tuner):
    """Trainer of a classifier of texts from a version, as "name@3", of a Hugging Face folder: an encoder or a language model.

    It reads one column of texts, or two whose texts are a pair, declared as `categorical`, and learns the outcomes binary,
    multiclass and multilabel. lora: None trains all weights; the head is learnt whole in any case.
    """

    kind: ClassVar[str] = "text_classifier"

    length: int = Field(default=256, ge=8, description="Tokens of a row; longer ones are cut.")
    lora: Lora | None = None
    params: RecipeParams = RecipeParams(lr=5e-5, epochs=3, batch_size=16)

    def check(self, outcome: Outcome, columns: Mapping[str, tuple[str, ...]]) -> None:
        """Check that the outcome is one of classes, and the columns are one or two of texts. Raises: ValueError."""
        if outcome not in _LEARNT:
            raise ValueError(
                f"a classifier of texts learns {', '.join(_LEARNT)}, not {outcome!r} (of {', '.join(get_args(Outcome))}); "
                "declare another trainer"
            )
        texts = columns.get("categorical", ())
        others = [name for kind, names in columns.items() if kind != "categorical" for name in names]
        if others or not 1 <= len(texts) <= MOST_TEXTS:
            raise ValueError(
                f"a classifier of texts reads one column of texts, or two, not categorical={texts} beside {others}: leave the "
                "others out"
            )

    def __call__(self, request: TrainingRequest) -> Trained:
        """Train the classifier and write it as a Hugging Face folder."""
        from toque.functions.training.llm.classifier_job import (
            train_classifier,  # late: torch and transformers
        )

        return train_classifier(self, request)
