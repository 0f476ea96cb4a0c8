"""Models of other formats in a predictor: warmed up, batched with texts, explained as any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.ray_apps.predictor.conftest import SIGNATURE
from toque.ray_apps.predictor.inference.request_parameters import Explainer, ExplainRequest
from toque.ray_apps.predictor.versions.loaded import LoadError, load_version
from toque.ray_apps.predictor.versions.scoring import load_scorer
from toque.registry import ModelVersion


@pytest.fixture
def record(tmp_path: Path) -> ModelVersion:
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder
    from skops.io import dump

    table = pd.DataFrame({"distance": [1.0, 2, 3, 4], "wind": [0.0, 1, 0, 1], "carrier": ["UA", "B6"] * 2})
    encode = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["carrier"]), remainder="passthrough"
    )
    dump(make_pipeline(encode, LogisticRegression()).fit(table, [0, 0, 1, 1]), tmp_path / "model.skops")
    return ModelVersion.model_construct(model="late", version=3, signature=SIGNATURE, tags={}, files={})


def test_a_model_of_each_flavor_answers_its_example_and_texts(tmp_path: Path, record: ModelVersion) -> None:
    loaded = load_version(record, tmp_path, load_scorer)
    texts = np.array([[b"UA"], [b"B6"], [None]], dtype=object)
    inputs = {"numeric": np.array([[4, 1], [4, 1], [1, 0]], np.float32), "categorical": texts}
    assert loaded.check(inputs) == 3
    answers = loaded.predict(inputs)["probability"]
    assert answers.dtype == np.float32
    assert answers.shape == (3, 1)
    assert answers[0] > answers[2]
    (first, *_) = Explainer(loaded, inputs, 3, ExplainRequest()).explain({"probability": answers})
    assert first["attributions"]["distance"] > 0
    assert first["baseline"] + sum(first["attributions"].values()) == pytest.approx(first["value"], abs=1e-6)


def test_a_version_that_cannot_answer_its_example_takes_no_traffic(
    tmp_path: Path, record: ModelVersion
) -> None:
    (tmp_path / "model.skops").write_bytes(b"half of it")
    with pytest.raises(LoadError, match=r"late@3 cannot be served: model\.skops cannot be read"):
        load_version(record, tmp_path, load_scorer)
