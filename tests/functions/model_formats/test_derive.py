"""Signatures read off model files: the columns that they learnt, the answer that they give."""

import json
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from skops.io import dump

from toque.functions.model_formats.derive import derive_signature, read_rows
from toque.functions.model_formats.errors import ArtifactRefused, TrainingDataError

X = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)
TREES = ["sklearn.tree._tree.Tree"]


def shapes(signature):
    return [(spec.name, spec.shape, spec.columns) for spec in (*signature.inputs, *signature.outputs)]


def boosted(folder, objective, labels, **more: Any):
    data = xgboost.DMatrix(X, labels, feature_names=["a", "b"])
    xgboost.train({"objective": objective, **more}, data, 3).save_model(folder / "model.ubj")


@pytest.mark.parametrize(
    ("objective", "labels", "more", "answer"),
    [
        ("binary:logistic", Y, {}, ("probability", [-1, 1], None)),
        ("reg:squarederror", X[:, 1], {}, ("value", [-1, 1], None)),
        ("multi:softprob", Y + (X[:, 1] > 0), {"num_class": 3}, ("probability", [-1, 3], ["0", "1", "2"])),
    ],
)
def test_trees_tell_their_columns_and_their_answer(tmp_path, objective, labels, more, answer):
    boosted(tmp_path, objective, labels, **more)
    assert shapes(derive_signature(tmp_path)) == [("numeric", [-1, 2], ["a", "b"]), answer]


def test_a_text_model_of_lightgbm_without_names_takes_a_matrix(tmp_path):
    data = lightgbm.Dataset(X, Y)
    lightgbm.train({"objective": "binary", "verbosity": -1}, data, 3).save_model(tmp_path / "model.txt")
    assert shapes(derive_signature(tmp_path)) == [("input", [-1, 2], None), ("probability", [-1, 1], None)]


def test_a_pipeline_with_texts_needs_an_example(tmp_path):
    frame = pd.DataFrame({"a": X[:, 0], "c": np.where(Y, "x", "y")})
    encode = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["c"]), remainder="passthrough")
    dump(make_pipeline(encode, LogisticRegression()).fit(frame, Y), tmp_path / "model.skops")
    with pytest.raises(ArtifactRefused, match="does not tell numbers from texts: give rows with --example"):
        derive_signature(tmp_path)
    (tmp_path / "rows.json").write_text(json.dumps([{"a": 0.5, "c": "x"}, {"a": None, "c": "y"}]))
    signature = derive_signature(tmp_path, [{"a": 0.5, "c": "x"}])
    assert shapes(signature) == [
        ("numeric", [-1, 1], ["a"]), ("categorical", [-1, 1], ["c"]), ("probability", [-1, 1], None)
    ]  # fmt: skip
    assert signature.example == {"numeric": [[0.5]], "categorical": [["x"]]}
    assert len(read_rows(tmp_path / "rows.json")) == 2


def test_types_that_nobody_trusts_are_refused_with_the_remedy(tmp_path):
    dump(RandomForestClassifier(3).fit(X, Y), tmp_path / "model.skops")
    with pytest.raises(ArtifactRefused, match=r"ModelPolicy\(trusted_types=\['sklearn.tree._tree.Tree'\]\)"):
        derive_signature(tmp_path)
    assert shapes(derive_signature(tmp_path, trusted_types=TREES)) == [
        ("input", [-1, 2], None), ("probability", [-1, 1], None)
    ]  # fmt: skip


def test_a_signature_beside_the_model_stands_before_what_it_says(tmp_path):
    dump(Ridge().fit(X, Y), tmp_path / "model.skops")
    own = derive_signature(tmp_path)
    assert shapes(own) == [("input", [-1, 2], None), ("value", [-1, 1], None)]
    named = own.model_copy(update={"outputs": [own.outputs[0].model_copy(update={"name": "price"})]})
    (tmp_path / "signature.json").write_text(named.model_dump_json())
    assert derive_signature(tmp_path) == named
    (tmp_path / "signature.json").write_text("{}")
    with pytest.raises(ArtifactRefused, match=r"signature\.json holds no signature"):
        derive_signature(tmp_path)


def test_an_example_of_other_columns_is_refused(tmp_path):
    boosted(tmp_path, "binary:logistic", Y)
    with pytest.raises(ArtifactRefused, match="learnt the columns"):
        derive_signature(tmp_path, [{"a": 1.0, "z": 2.0}])
    (tmp_path / "rows.json").write_text("[]")
    with pytest.raises(TrainingDataError, match="holds no rows"):
        read_rows(tmp_path / "rows.json")
