"""Models that MLflow's own flavors write are served: under our file names, with the signature that was inferred."""

import json
import zipfile
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import infer_signature
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge

from toque.functions.model_formats.errors import ArtifactRefused
from toque.functions.model_formats.load import load
from toque.functions.model_formats.mlflow_files import name_as_served, read_mlmodel
from toque.functions.model_formats.program import load_program
from toque.ray_apps.mlflow.versions import require_trusted, signature_in
from toque.registry import InvalidInput, ModelPolicy, Registry, open_store

# a library that MLflow itself brings along, at its import
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint:UserWarning")
FRAME = pd.DataFrame(np.random.default_rng(0).normal(size=(200, 2)), columns=["a", "b"])
LABEL = (FRAME["a"] > 0).astype(int)


def lightgbm(folder: str) -> Any:
    from lightgbm import Dataset, train

    model = train({"objective": "binary", "verbosity": -1}, Dataset(FRAME, LABEL), 3)
    found = model.predict(FRAME)
    signature = infer_signature(FRAME, LABEL.to_numpy())
    mlflow.lightgbm.save_model(model, folder, signature=signature, pip_requirements=["lightgbm"])
    return "probability", found


def xgboost(folder: str) -> Any:
    from xgboost import DMatrix, train

    model = train({"objective": "reg:squarederror"}, DMatrix(FRAME, FRAME["b"]), 3)
    found = model.predict(DMatrix(FRAME))
    signature = infer_signature(FRAME, found)
    mlflow.xgboost.save_model(model, folder, signature=signature, pip_requirements=["xgboost"])
    return "value", found


def sklearn(folder: str) -> Any:
    model = LogisticRegression().fit(FRAME, LABEL)
    save_by_skops(model, folder, model.predict(FRAME))
    return "probability", model.predict_proba(FRAME)[:, 1]


def ridge(folder: str) -> Any:
    model = Ridge().fit(FRAME, FRAME["b"])
    found = model.predict(FRAME)
    save_by_skops(model, folder, found)
    return "value", found


def save_by_skops(model: Any, folder: str, answers: Any) -> None:
    mlflow.sklearn.save_model(
        model,
        folder,
        signature=infer_signature(FRAME, answers),
        serialization_format="skops",
        pip_requirements=["scikit-learn", "skops"],  # else it starts a process that finds them out
    )


def test_a_program_of_torch_is_served_without_what_is_pickled_beside_it(tmp_path):
    import torch

    net = torch.nn.Sequential(
        torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1), torch.nn.Sigmoid()
    )
    rows = FRAME.to_numpy(np.float32)
    found = net(torch.from_numpy(rows)).detach().numpy()
    folder = tmp_path / "model"
    mlflow.pytorch.save_model(
        net,
        str(folder),
        signature=infer_signature(rows, found),
        input_example=rows[:3],
        serialization_format="pt2",
        pip_requirements=["torch"],
    )
    with pytest.raises(ArtifactRefused, match="pickled sample inputs"):
        load_program((folder / "data" / "model.pt2").read_bytes())
    name_as_served(folder)
    signature = signature_in(folder)
    assert signature is not None
    assert [(each.name, each.shape) for each in signature.inputs] == [("input", [-1, 2])]
    model = load(folder, signature=signature)
    for few in (rows, rows[:1]):
        (answer,) = model.predict({"input": few}).values()
        np.testing.assert_allclose(answer, found[: len(few)], atol=1e-6)
    own = mlflow.pytorch.load_model(str(folder))(torch.from_numpy(rows))
    np.testing.assert_allclose(own.detach().numpy(), found, atol=1e-6)


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


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a" * (1 << 20) + "b", "at most 1,048,576 are read"),
        ("flavors: !!python/object/apply:os.system ['true']", "cannot be read as YAML"),
        ("[" * 5_000, "cannot be read as YAML"),
        ("- 1", "no flavors by name"),
        ("flavors: {onnx: 3}", "no flavors by name"),
    ],
    ids=["large", "tag", "deep", "list", "number"],
)
def test_an_mlmodel_that_no_client_writes_is_refused_by_name(tmp_path, text, says):
    (tmp_path / "MLmodel").write_text(text)
    for read in (read_mlmodel, name_as_served, signature_in):
        with pytest.raises(ArtifactRefused, match=says):
            read(tmp_path)


def test_a_skops_file_that_unpacks_to_many_times_its_size_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.skops", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", b" " * (64 << 20) + b"{}")
    registry = Registry(open_store((tmp_path / "store").as_uri()), actor="ada")
    with pytest.raises(ArtifactRefused, match="without compression"):
        require_trusted(registry, "m", tmp_path)


def test_a_signature_larger_than_any_is_not_read(tmp_path):
    with (tmp_path / "signature.json").open("wb") as file:
        file.truncate(17 << 20)
    with pytest.raises(InvalidInput, match="at most 16,777,216 are read"):
        signature_in(tmp_path)
