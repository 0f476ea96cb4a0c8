"""Models that MLflow's own flavors write are served: under our file names, with the signature that was inferred."""

import json
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import infer_signature
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge

from functions.model_formats.load import load
from ray_apps.mlflow.model_files import name_as_served, require_trusted
from ray_apps.mlflow.signature import signature_in
from registry import InvalidInput, ModelPolicy, Registry, open_store

# a library that MLflow itself brings along, at its import
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint:UserWarning")
FRAME = pd.DataFrame(np.random.default_rng(0).normal(size=(200, 2)), columns=["a", "b"])
LABEL = (FRAME["a"] > 0).astype(int)


def lightgbm(folder: str) -> Any:
    from lightgbm import Dataset, train

    model = train({"objective": "binary", "verbosity": -1}, Dataset(FRAME, LABEL), 3)
    found = model.predict(FRAME)
    mlflow.lightgbm.save_model(model, folder, signature=infer_signature(FRAME, LABEL.to_numpy()))
    return "probability", found


def xgboost(folder: str) -> Any:
    from xgboost import DMatrix, train

    model = train({"objective": "reg:squarederror"}, DMatrix(FRAME, FRAME["b"]), 3)
    found = model.predict(DMatrix(FRAME))
    mlflow.xgboost.save_model(model, folder, signature=infer_signature(FRAME, found))
    return "value", found


def sklearn(folder: str) -> Any:
    model = LogisticRegression().fit(FRAME, LABEL)
    signature = infer_signature(FRAME, model.predict(FRAME))
    mlflow.sklearn.save_model(model, folder, signature=signature, serialization_format="skops")
    return "probability", model.predict_proba(FRAME)[:, 1]


def ridge(folder: str) -> Any:
    model = Ridge().fit(FRAME, FRAME["b"])
    found = model.predict(FRAME)
    mlflow.sklearn.save_model(
        model, folder, signature=infer_signature(FRAME, found), serialization_format="skops"
    )
    return "value", found


@pytest.mark.parametrize("save", [lightgbm, xgboost, sklearn, ridge])
def test_what_a_flavor_saved_is_answered_as_it_was_learnt(tmp_path, save):
    name, wanted = save(str(tmp_path / "model"))
    folder = tmp_path / "model"
    name_as_served(folder)
    signature = signature_in(folder)
    assert signature is not None
    assert [(each.name, each.columns) for each in signature.inputs] == [("numeric", ["a", "b"])]
    assert [each.name for each in signature.outputs] == [name]
    answer = load(folder, signature=signature).predict({"numeric": FRAME.to_numpy()})[name]
    np.testing.assert_allclose(answer[:, 0], wanted, atol=1e-5)


def test_our_own_signature_stands_before_that_of_mlmodel(tmp_path):
    ridge(str(tmp_path / "model"))
    own = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}],
    }
    (tmp_path / "model" / "signature.json").write_text(json.dumps(own))
    found = signature_in(tmp_path / "model")
    assert found is not None
    assert found.inputs[0].name == "x"
    (tmp_path / "model" / "signature.json").write_text("{}")
    with pytest.raises(InvalidInput, match=r"signature\.json"):
        signature_in(tmp_path / "model")


def test_types_that_nobody_trusts_are_refused_with_the_remedy(tmp_path):
    from skops.io import dump

    dump(RandomForestClassifier(3).fit(FRAME, LABEL), tmp_path / "model.skops")
    registry = Registry(open_store((tmp_path / "store").as_uri()), actor="ada")
    with pytest.raises(InvalidInput, match=r"trusted_types=\['sklearn.tree._tree.Tree'\]"):
        require_trusted(registry, "m", tmp_path)
    trusting = ModelPolicy(trusted_types=frozenset({"sklearn.tree._tree.Tree"}))
    registry.create_model("m", policy=trusting)
    require_trusted(registry, "m", tmp_path)
