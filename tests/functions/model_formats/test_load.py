import json

import numpy as np
import pytest
import torch

from tests.functions.training.tabular_setup import COLUMNS, FAST, examples
from toque.functions.model_formats.errors import ArtifactRefused, TrainingDataError
from toque.functions.model_formats.load import load
from toque.functions.model_formats.sandbox import Sandbox, SandboxLimits
from toque.functions.training.tabular.fitting import fit, prepare
from toque.functions.training.tabular.job import tabular_signature, write_artifact
from toque.kernels.hashing import hash_strings
from toque.registry.models import Signature


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    table = examples()
    params = FAST.model_copy(update={"epochs": 1})
    fitted = fit(prepare(table, COLUMNS, params), params)
    signature = tabular_signature(COLUMNS, table, fitted.scorer.target)
    write_artifact(path, fitted, signature=signature, columns=COLUMNS, params=params)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


def rows(count):
    generator = np.random.default_rng(0)
    numeric = generator.normal(50, 50, (count, 3)).astype(np.float32)
    numeric[generator.random((count, 3)) < 0.3] = np.nan
    return numeric, generator.choice(np.array(["AA", "UA", "new", "ünï"]), (count, 2))


def test_one_row_and_many_rows_agree(model):
    numeric, texts = rows(500)
    together = model.predict({"numeric": numeric, "categorical": texts})["probability"]
    assert together.shape == (500, 1)
    assert together.dtype == np.float32
    assert ((together > 0) & (together < 1)).all()
    alone = [
        model.predict({"numeric": numeric[n : n + 1], "categorical": texts[n : n + 1]})["probability"]
        for n in range(20)
    ]
    np.testing.assert_allclose(np.concatenate(alone), together[:20], atol=1e-6)


def test_a_program_passes_where_it_is_read_under_limits(folder, tmp_path):
    signature = load(folder).signature
    assert signature.example is not None
    sandbox = Sandbox(SandboxLimits(), verdicts=tmp_path / "verdicts", environment={})
    sandbox.check(folder, signature)
    sandbox.close()
    assert len([*(tmp_path / "verdicts").iterdir()]) == 1


def test_texts_and_their_hashes_are_the_same_input(model):
    numeric, texts = rows(10)
    by_text = model.predict({"numeric": numeric, "categorical": texts})
    by_hash = model.predict({"numeric": numeric, "categorical": hash_strings(texts.astype(object))})
    np.testing.assert_array_equal(by_text["probability"], by_hash["probability"])


def test_a_missing_text_is_not_an_unknown_one(model):
    numeric = np.zeros((2, 3), np.float32)
    texts = np.array([["AA", None], ["AA", "never seen"]], dtype=object)
    first, second = model.predict({"numeric": numeric, "categorical": texts})["probability"].ravel()
    assert first != second


def test_no_rows_give_no_rows(model):
    got = model.predict({"numeric": np.empty((0, 3), np.float32), "categorical": np.empty((0, 2), object)})
    assert got["probability"].shape == (0, 1)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"numeric": np.zeros((2, 3))}, "'categorical' is absent"),
        (
            {"numeric": np.zeros((2, 4)), "categorical": np.zeros((2, 2), np.int64)},
            r"'numeric' has shape \[2, 4\]",
        ),
        ({"numeric": np.zeros(3), "categorical": np.zeros((2, 2), np.int64)}, r"'numeric' has shape \[3\]"),
        (
            {"numeric": np.zeros((3, 3)), "categorical": np.zeros((2, 2), np.int64)},
            "disagree on the number of rows",
        ),
        ({"numeric": np.array([["a"] * 3]), "categorical": np.zeros((1, 2), np.int64)}, "'numeric' holds"),
        (
            {"numeric": np.zeros((1, 3)), "categorical": np.zeros((1, 2), np.int64), "x": 1},
            r"no input \['x'\]",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_named(model, inputs, says):
    with pytest.raises(TrainingDataError, match=says):
        model.predict(inputs)


def test_the_recorded_example_warms_up(model):
    model.warm_up()
    assert model.signature.example is not None
    assert model.signature.inputs[0].columns == ["wind", "load", "seats"]


def test_the_file_says_what_a_reader_wants_to_know(folder):
    description = json.loads((folder / "model.json").read_text())
    assert description["kind"] == "tabular"
    assert description["label"] == "late"
    assert set(description["validation"]) == {"log_loss", "auc", "ece", "brier"}
    assert description["made_with"]["torch"] == torch.__version__
    assert Signature.model_validate(description["signature"]).outputs[0].name == "probability"


def test_a_folder_without_a_model_says_what_is_there(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(ArtifactRefused, match=r"no model.pt2 .* \['weights.bin'\]"):
        load(tmp_path)


def test_a_model_without_description_wants_a_signature(folder, tmp_path):
    (tmp_path / "model.pt2").write_bytes((folder / "model.pt2").read_bytes())
    with pytest.raises(ArtifactRefused, match="pass the signature"):
        load(tmp_path)
