"""Models of other makes answer as they do in their own library, or are refused with the reason."""

import json
import pickle
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from toque.functions.model_formats.errors import ArtifactRefused
from toque.functions.model_formats.flavors import FLAVORS
from toque.functions.model_formats.formats import FORMATS, format_of
from toque.functions.model_formats.sandbox import Sandbox, SandboxLimits
from toque.functions.training import load
from toque.registry import Registry, Signature, TensorSpec, open_store

ROWS = 60
COLUMNS = ["distance", "wind", "delay"]
X = np.random.default_rng(7).normal(size=(ROWS, 3)).astype(np.float32)
Y = (X[:, 0] + 0.5 * X[:, 1] > 0).astype(int)
CLASSES = np.digitize(X[:, 2], [-0.5, 0.5])


def signed(*shape: int, columns: bool = True, texts: bool = False, datatype: str = "FP32") -> Signature:
    numeric = TensorSpec(name="numeric", datatype="FP32", shape=[-1, 3], columns=COLUMNS if columns else None)
    carrier = TensorSpec(name="categorical", datatype="BYTES", shape=[-1, 1], columns=["carrier"])
    return Signature(
        inputs=[numeric, carrier] if texts else [numeric],
        outputs=[TensorSpec(name="p", datatype=datatype, shape=list(shape))],
        example={"numeric": X[:2].tolist(), **({"categorical": [["UA"], ["B6"]]} if texts else {})},
    )


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    made = Sandbox(SandboxLimits(), verdicts=tmp_path_factory.mktemp("verdicts"), environment={})
    yield made
    made.close()


def answer(folder: Path, signature: Signature, sandbox: Sandbox | None = None, **more: Any) -> np.ndarray:
    if sandbox is not None:  # each format passes where it is read under limits
        sandbox.check(folder, signature)
    model = load(folder, signature=signature)
    model.warm_up()
    return model.predict({"numeric": X, **more})["p"]


def test_a_pipeline_of_scikit_learn_takes_its_columns_by_name(tmp_path: Path, sandbox: Sandbox) -> None:
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler
    from skops.io import dump

    carriers = np.array(["UA", "B6", "DL"] * (ROWS // 3), dtype=object)
    table = pd.DataFrame(X, columns=COLUMNS).assign(carrier=carriers)
    encode = make_column_transformer(
        (StandardScaler(), ["wind", "distance"]), (OneHotEncoder(handle_unknown="ignore"), ["carrier"])
    )
    model = make_pipeline(encode, LogisticRegression()).fit(table, Y)
    dump(model, tmp_path / "model.skops")
    as_bytes = np.array([[carrier.encode()] for carrier in carriers], dtype=object)
    for shape in ((-1,), (-1, 1)):
        got = answer(tmp_path, signed(*shape, texts=True), sandbox, categorical=as_bytes)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got.reshape(-1), model.predict_proba(table)[:, 1], rtol=1e-6)


def test_a_regression_and_several_classes_of_scikit_learn(tmp_path: Path) -> None:
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from skops.io import dump

    (tmp_path / "line").mkdir()
    line = LinearRegression().fit(X, X[:, 0] * 3)
    dump(line, tmp_path / "line" / "model.skops")
    got = answer(tmp_path / "line", signed(-1, columns=False, datatype="FP64"))
    np.testing.assert_allclose(got, line.predict(X), rtol=1e-6)
    (tmp_path / "classes").mkdir()
    many = LogisticRegression().fit(X, CLASSES)
    dump(many, tmp_path / "classes" / "model.skops")
    got = answer(tmp_path / "classes", signed(-1, 3, columns=False))
    np.testing.assert_allclose(got, many.predict_proba(X), rtol=1e-5)
    with pytest.raises(ArtifactRefused, match="output 'p' has shape"):
        answer(tmp_path / "classes", signed(-1, 4, columns=False))


def test_types_that_skops_does_not_know_are_refused_by_name(tmp_path: Path) -> None:
    from sklearn.preprocessing import FunctionTransformer
    from skops.io import dump

    dump(FunctionTransformer(json.dumps), tmp_path / "model.skops")
    with pytest.raises(ArtifactRefused, match=r"json\.dumps.*SCORERS"):
        load(tmp_path, signature=signed(-1))


def test_xgboost(tmp_path: Path, sandbox: Sandbox) -> None:
    import xgboost

    data = xgboost.DMatrix(X, Y, feature_names=COLUMNS)
    model = xgboost.train({"objective": "binary:logistic", "nthread": 1}, data, num_boost_round=5)
    model.save_model(tmp_path / "model.ubj")
    np.testing.assert_allclose(answer(tmp_path, signed(-1), sandbox), model.predict(data), rtol=1e-6)
    _refuses_columns_in_another_order(tmp_path)


def test_lightgbm(tmp_path: Path, sandbox: Sandbox) -> None:
    import lightgbm

    options = {"objective": "binary", "num_threads": 1, "verbose": -1, "min_data_in_leaf": 5}
    data = lightgbm.Dataset(X, Y, feature_name=COLUMNS)
    model = lightgbm.train(options, data, num_boost_round=5)
    model.save_model(tmp_path / "model.txt")
    np.testing.assert_allclose(answer(tmp_path, signed(-1, 1), sandbox)[:, 0], model.predict(X), rtol=1e-6)
    _refuses_columns_in_another_order(tmp_path)


def _refuses_columns_in_another_order(folder: Path) -> None:
    spec = TensorSpec(name="numeric", datatype="FP32", shape=[-1, 3], columns=COLUMNS[::-1])
    other = Signature(inputs=[spec], outputs=[TensorSpec(name="p", datatype="FP32", shape=[-1])])
    with pytest.raises(ArtifactRefused, match="learnt the columns"):
        load(folder, signature=other)
    with pytest.raises(ArtifactRefused, match="'categorical' is BYTES"):
        load(folder, signature=signed(-1, texts=True))


@pytest.fixture
def linear_graph(tmp_path: Path) -> Path:
    from onnx import TensorProto, checker, helper, numpy_helper, save

    weights = numpy_helper.from_array(np.array([[1.0], [2.0], [-1.0]], np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["numeric", "w"], ["p"])],
        "linear",
        [helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["rows", 1])],
        [weights],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
    checker.check_model(model)
    save(model, tmp_path / "model.onnx")
    return tmp_path


def test_onnx_by_the_names_of_its_tensors(linear_graph: Path, sandbox: Sandbox) -> None:
    wanted = X @ np.array([1.0, 2.0, -1.0], np.float32)
    np.testing.assert_allclose(answer(linear_graph, signed(-1), sandbox), wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(ArtifactRefused, match=r"the graph has the inputs \['numeric'\]"):
        load(linear_graph, signature=signed(-1, texts=True))


class Ranker:
    """Reads a weight; answers with numbers and texts."""

    def load(self, folder: Path) -> None:
        self.weight = float((folder / "weight.txt").read_text())

    def predict(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        sums = inputs["numeric"].sum(axis=1) * self.weight
        names = [f"{carrier}!" for carrier in inputs["categorical"][:, 0]]
        return {"p": sums, "named": np.array(names, dtype=object)}


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def declare(**scorers: Any) -> None:
        module = ModuleType("project_with_scorers")
        module.SCORERS = scorers  # type: ignore[attr-defined] - a module made here
        monkeypatch.setitem(sys.modules, "project_with_scorers", module)
        monkeypatch.setenv("TOQUE_PROJECT", "project_with_scorers")

    return declare


def test_a_class_of_the_project(tmp_path: Path, project: Callable[..., None]) -> None:
    (tmp_path / "python_model.json").write_text('{"scorer": "ranker"}')
    (tmp_path / "weight.txt").write_text("2.5")
    numbers = signed(-1, texts=True)
    named = TensorSpec(name="named", datatype="BYTES", shape=[-1])
    signature = numbers.model_copy(update={"outputs": [*numbers.outputs, named]})
    with pytest.raises(ArtifactRefused, match="Set TOQUE_PROJECT"):
        load(tmp_path, signature=signature)
    project(other=Ranker)
    with pytest.raises(ArtifactRefused, match=r"no scorer 'ranker'.*\['other'\]"):
        load(tmp_path, signature=signature)
    project(ranker=Ranker)
    got = load(tmp_path, signature=signature).predict({"numeric": X[:2], "categorical": [[b"UA"], [None]]})
    np.testing.assert_allclose(got["p"], X[:2].sum(axis=1) * 2.5, rtol=1e-6)
    assert got["named"].tolist() == [b"UA!", b"None!"]


def test_a_package_that_the_projects_class_lacks_is_not_looked_for_among_the_platforms(
    tmp_path: Path, project: Callable[..., None]
) -> None:
    class Sorter(Ranker):
        def load(self, folder: Path) -> None:  # noqa: ARG002 - the protocol's
            import tomato_sorter  # type: ignore[import-not-found]  # noqa: F401

    project(sorter=Sorter)
    (tmp_path / "python_model.json").write_text('{"scorer": "sorter"}')
    with pytest.raises(
        ArtifactRefused, match=r"tomato_sorter, which is not installed: install what the project's class"
    ):
        answer(tmp_path, signed(-1))


def test_a_model_that_forgets_an_output_is_refused(tmp_path: Path, project: Callable[..., None]) -> None:
    class Mute:
        def load(self, folder: Path) -> None: ...

        def predict(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:  # noqa: ARG002 - the protocol's
            return {"q": np.zeros(2)}

    project(mute=Mute)
    (tmp_path / "python_model.json").write_text('{"scorer": "mute"}')
    with pytest.raises(ArtifactRefused, match=r"gives \['q'\], the signature promises \['p'\]"):
        answer(tmp_path, signed(-1))


@pytest.mark.parametrize("name", ["model.onnx", "model.skops", "model.ubj", "model.txt", "python_model.json"])
def test_a_file_of_another_format_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(ArtifactRefused, match=r"cannot be read|which project"):
        load(tmp_path, signature=signed(-1))


def test_a_folder_of_two_models_is_refused(linear_graph: Path) -> None:
    (linear_graph / "model.txt").write_text("tree")
    with pytest.raises(ArtifactRefused, match="one version is one model"):
        load(linear_graph, signature=signed(-1))


def test_model_files_of_these_formats_pass_the_registrys_check_for_code(
    linear_graph: Path, tmp_path: Path
) -> None:
    registry = Registry(open_store(f"file://{tmp_path / 'store'}"), actor="ada")
    registry.create_model("late")
    version = registry.create_version("late", path=linear_graph, signature=signed(-1))
    folder = registry.download("late", version.version, to=tmp_path / "got")
    assert answer(folder, signed(-1)).shape == (ROWS,)


@pytest.mark.parametrize(
    ("name", "content"),
    [("model.onnx", b"PK\x03\x04"), ("model.skops", b"\x80\x04N."), ("model.ubj", b"\x80\x02N."), ("model.txt", b"cos\n"),
     ("model.pt2", b"\x80\x02}q\x00.")],
)  # fmt: skip
def test_what_a_file_begins_with_decides_and_not_only_its_name(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactRefused, match=rf"{name} cannot be read: it begins with .*; write it with"):
        load(tmp_path, signature=signed(-1))


def test_a_pickle_beside_a_model_is_refused_before_anything_is_parsed(
    linear_graph: Path, sandbox: Sandbox
) -> None:
    (linear_graph / "encoder.bin").write_bytes(pickle.dumps(Ranker()))  # a table of numbers would run nothing
    with pytest.raises(
        ArtifactRefused, match=r"\['encoder\.bin'\] can execute code when loaded, and pickles"
    ):
        sandbox.check(linear_graph, signed(-1))


def test_safetensors_beside_another_model_are_what_it_reads(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    assert format_of(tmp_path).file == "model.safetensors"
    (tmp_path / "python_model.json").write_text('{"scorer": "ranker"}')
    assert format_of(tmp_path).file == "python_model.json"


def test_every_format_that_is_allowed_has_a_reader_and_no_other_has() -> None:
    assert {*FLAVORS} == {*FORMATS} - {"model.pt2"}
