"""Classes by name: the most probable one of each row stands beside its probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from toque.ray_apps.predictor.versions.loaded import LoadedVersion
from toque.registry import Signature, TensorSpec

NAMES = ["not too happy", "pretty happy", "très heureux"]
GIVEN = TensorSpec(name="numeric", datatype="FP32", shape=[-1, 1], columns=["a"])


def version(output: TensorSpec) -> LoadedVersion:
    made: Any = LoadedVersion.__new__(LoadedVersion)
    made.classes = Signature(inputs=[GIVEN], outputs=[output]).classes
    return made  # type: ignore[no-any-return]


def test_the_most_probable_class_is_named_and_a_row_without_an_answer_has_none() -> None:
    made = version(TensorSpec(name="probability", datatype="FP32", shape=[-1, 3], columns=NAMES))
    nan = float("nan")
    rows = np.array([[0.2, 0.3, 0.5], [0.4, 0.4, 0.2], [nan, nan, nan], [0.1, nan, 0.9]], np.float32)
    assert made.most_probable({"probability": rows}) == [NAMES[2], NAMES[0], None, None]
    assert made.most_probable({"probability": rows[:0]}) == []


@pytest.mark.parametrize(
    "output",
    [
        TensorSpec(name="probability", datatype="FP32", shape=[-1, 1]),
        TensorSpec(name="probability", datatype="FP32", shape=[-1, 1], columns=["late"]),
        TensorSpec(name="label_probability", datatype="FP32", shape=[-1, 3], columns=NAMES),
        TensorSpec(name="text", datatype="BYTES", shape=[-1, 3], columns=NAMES),
        TensorSpec(name="value", datatype="FP64", shape=[-1, 1]),
    ],
)
def test_other_answers_name_no_class(output: TensorSpec) -> None:
    assert version(output).classes == ()
