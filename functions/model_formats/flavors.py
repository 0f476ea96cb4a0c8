"""Formats of models trained elsewhere, each read safely: ONNX, skops, XGBoost, LightGBM, Hugging Face, own classes.

A version's folder holds one model file; its name says which flavor it is (`.formats`). A library is imported when a file of its
format is read, and comes with `pip install toque[flavors]`. Nothing is unpickled: skops refuses types that it does not know, the
other formats hold no code, and a project's own class is found in its `SCORERS`, never in the version's files.
A tensor of ONNX may say that its bytes lie in another file, or at an address in memory, and ONNX Runtime would read them there. So
each tensor of the file is looked at before, those of branches, attributes, functions and sparse tensors too, without a
library's parser. Source: onnx/onnx.proto; https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import importlib
import json
import os
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, Self

import numpy as np
import numpy.typing as npt

from toque.functions.model_formats.errors import ArtifactRefused, TrainingDataError
from toque.functions.model_formats.formats import PYTHON_MODEL
from toque.functions.model_formats.table_inputs import own_columns
from toque.functions.model_formats.text_classifier import CLASSIFIER_FILE, read_text_classifier
from toque.registry.models import Signature, TensorSpec
from toque.registry.models.code_files import open_archive

Array = npt.NDArray[Any]
SKOPS_FILE = "model.skops"
_HARMLESS_TYPES = ("numpy.dtype",)  # what skops 0.16 does not list, and which holds a name and no code
Answer = Callable[[Mapping[str, Array]], Mapping[str, Any]]
"""Inputs by name to outputs by name. Texts are object arrays of `str`, None where missing."""
CATEGORIES_FILE = "categories.json"


class PythonModel(Protocol):
    """Model class of a project: made without arguments, loaded once, called by several threads.

    The project names it, `SCORERS = {"ranker": Ranker}`; a version of such a model holds `python_model.json` with
    `{"scorer": "ranker"}` beside the files that the class reads.
    """

    def load(self, folder: Path) -> None:
        """Read the version's files from its folder. Raises: any exception if they cannot be served."""
        ...

    def predict(self, inputs: Mapping[str, Array]) -> Mapping[str, Any]:
        """Compute outputs by name for inputs that fit the signature. Raises: ValueError for values that it refuses."""
        ...


def load_answer(folder: Path, name: str, signature: Signature, trusted_types: Collection[str] = ()) -> Answer:
    """Load the model file `name` as a function from inputs to outputs, checked against the signature if possible.

    trusted_types: classes that a file of skops may name beside those that it knows.
    Raises: ArtifactRefused if the library is not installed, cannot read the file, or the file does not fit the signature.
    """
    try:
        if name == SKOPS_FILE:
            return _sklearn(folder / name, signature, trusted_types)
        return FLAVORS[name](folder / name, signature)
    except ImportError as error:
        raise ArtifactRefused(
            f"{name} needs {error.name}, which is not installed: {_remedy(name)}"
        ) from error
    except (ArtifactRefused, TrainingDataError, MemoryError):
        raise
    except Exception as error:  # each library has errors of its own for a file that it cannot read
        raise ArtifactRefused(f"{name} cannot be read: {error}") from error


def _remedy(name: str) -> str:
    if name == PYTHON_MODEL:
        return "install what the project's class imports where its replicas run"
    return f"pip install toque[{'llm' if name == CLASSIFIER_FILE else 'flavors'}]"


def fitted_output(spec: TensorSpec, value: Any) -> Array:
    """Fit an output to the signature's shape: (rows,) for (rows, 1) and back, the second column of two classes.

    Raises: ArtifactRefused if the output has another shape.
    """
    array = np.asarray(value)
    if array.ndim == 2 and array.shape[1] == 2 and spec.shape in ([-1], [-1, 1]):  # noqa: PLR2004 - yes or no
        array = array[:, 1]
    if len(spec.shape) == 2 and spec.shape[1] == 1 and array.ndim == 1:  # noqa: PLR2004 - rows and one column
        array = array[:, None]
    elif len(spec.shape) == 1 and array.ndim == 2 and array.shape[1] == 1:  # noqa: PLR2004 - rows and one column
        array = array[:, 0]
    fits = array.ndim == len(spec.shape) and all(
        want in {-1, got} for want, got in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        raise ArtifactRefused(
            f"output {spec.name!r} has shape {list(array.shape)}, the signature says {spec.shape}"
        )
    return array


def _onnx(path: Path, signature: Signature) -> Answer:
    import onnxruntime

    session = open_graph(
        path,
        intra_op_num_threads=1,  # a replica has the cores it asked for
        inter_op_num_threads=1,
        providers=onnxruntime.get_available_providers(),
    )
    for kind, specs, nodes in (
        ("input", signature.inputs, session.get_inputs()),
        ("output", signature.outputs, session.get_outputs()),
    ):
        found, wanted = [node.name for node in nodes], [spec.name for spec in specs]
        if set(wanted) - set(found) or (kind == "input" and set(found) - set(wanted)):
            raise ArtifactRefused(f"the graph has the {kind}s {found}, the signature {wanted}: use its names")
    outputs = [spec.name for spec in signature.outputs]

    def answer(inputs: Mapping[str, Array]) -> Mapping[str, Any]:
        return dict(zip(outputs, session.run(outputs, dict(inputs)), strict=True))

    return answer


def untrusted_types(path: Path, trusted_types: Collection[str] = ()) -> list[str]:
    """Names of the classes in a file of skops that neither skops knows to be safe nor `trusted_types` names, sorted.

    Raises: ArtifactRefused if it would unpack to many times its size; what skops raises for a file that it cannot read.
    """
    from skops.io import get_untrusted_types

    try:
        open_archive(path).close()
    except zipfile.BadZipFile as error:
        raise ArtifactRefused(f"{path.name} cannot be read: {error}") from error
    return sorted(set(get_untrusted_types(file=path)) - {*trusted_types, *_HARMLESS_TYPES})


def _sklearn(path: Path, signature: Signature, trusted_types: Collection[str]) -> Answer:
    """Read a model of scikit-learn. trusted_types: names of classes that may be made beside those that skops knows."""
    from skops.io import load

    unknown = untrusted_types(path, trusted_types)
    if unknown:
        raise ArtifactRefused(
            f"{path.name} holds {unknown}, which skops does not know to be safe: if you trust whoever trained it, have an admin "
            f"name them in the model's policy, ModelPolicy(trusted_types={unknown}), or let a class in the project's "
            "SCORERS load it"
        )
    model = load(path, trusted=[*trusted_types, *_HARMLESS_TYPES])
    (output,) = _only(signature.outputs)
    classified = hasattr(model, "predict_proba") and signature.outputs[0].datatype != "BYTES"
    predict = model.predict_proba if classified else model.predict
    return lambda inputs: {output: _side_by_side(predict(sklearn_rows(signature, inputs)))}


def _side_by_side(answer: Any) -> Any:
    """Join what an estimator of several labels answers as a list, (rows, 2) a label, into (rows, labels) of "yes"."""
    return np.column_stack([each[:, 1] for each in answer]) if isinstance(answer, list) else answer


def _xgboost(path: Path, signature: Signature) -> Answer:
    from xgboost import Booster

    model = Booster({"nthread": 1})
    model.load_model(path)
    categories = Categories.find(path.parent)
    _check_columns(signature, model.feature_names, categories)
    (output,) = _only(signature.outputs)
    return lambda inputs: {
        output: model.inplace_predict(number_rows(signature, inputs, categories), validate_features=False)
    }


def _lightgbm(path: Path, signature: Signature) -> Answer:
    from lightgbm import Booster

    model = Booster(model_file=path)
    names = model.feature_name()
    categories = Categories.find(path.parent)
    own_names = names == [f"Column_{i}" for i in range(len(names))]
    _check_columns(signature, None if own_names else names, categories)
    (output,) = _only(signature.outputs)
    return lambda inputs: {output: model.predict(number_rows(signature, inputs, categories), num_threads=1)}


def _python(path: Path, signature: Signature) -> Answer:  # noqa: ARG001 - the class checks what it wants to
    named = json.loads(path.read_text())
    name = named.get("scorer") if isinstance(named, dict) else None
    project = os.environ.get("TOQUE_PROJECT")
    if not project:
        raise ArtifactRefused(f"scorer {name!r}: which project's? Set TOQUE_PROJECT to a module with SCORERS")
    known = getattr(importlib.import_module(project), "SCORERS", {})
    if name not in known:
        raise ArtifactRefused(f"no scorer {name!r} in {project}.SCORERS, which has {sorted(known)}")
    model: PythonModel = known[name]()
    model.load(path.parent)
    return model.predict


FLAVORS: dict[str, Callable[[Path, Signature], Answer]] = {
    "model.onnx": _onnx,
    SKOPS_FILE: partial(_sklearn, trusted_types=()),
    "model.ubj": _xgboost,
    "model.txt": _lightgbm,
    PYTHON_MODEL: _python,
    CLASSIFIER_FILE: read_text_classifier,
}


def _only(outputs: Sequence[TensorSpec]) -> tuple[str]:
    if len(outputs) != 1:
        raise ArtifactRefused(
            f"the signature has {len(outputs)} outputs, such a model gives one: {[s.name for s in outputs]}"
        )
    return (outputs[0].name,)


def _check_columns(signature: Signature, names: Sequence[str] | None, categories: Categories | None) -> None:
    """Refuse columns in another order than the model learnt, for which it would answer wrongly."""
    for spec in signature.inputs:
        known = () if categories is None else categories.columns
        unknown = [name for name in own_columns(spec) if name not in known]
        if spec.datatype == "BYTES" and unknown:
            raise ArtifactRefused(
                f"input {spec.name!r} is BYTES: this model takes numbers only; encode texts before it, or put a "
                f"{CATEGORIES_FILE} beside it that lists the texts of {unknown}"
            )
    columns = [name for spec in signature.inputs for name in spec.columns or ()]
    if names is not None and columns and list(names) != columns:
        raise ArtifactRefused(f"the model learnt the columns {list(names)}, the signature names {columns}")


def number_rows(
    signature: Signature, inputs: Mapping[str, Array], categories: Categories | None = None
) -> Array:
    """Join all inputs side by side, as (rows, columns) numbers; texts become codes of `categories`."""
    parts = []
    for spec in signature.inputs:
        part = inputs[spec.name]
        if spec.datatype == "BYTES" and categories is not None:
            part = categories.codes(own_columns(spec), part.reshape(len(part), -1))
        parts.append(part.reshape(len(part), -1))
    return parts[0] if len(parts) == 1 else np.hstack(parts)


def sklearn_rows(signature: Signature, inputs: Mapping[str, Array]) -> Any:
    """Join all inputs as a table with named columns, by which a pipeline of scikit-learn may select.

    Where an input names no columns, as a tensor does, the rows are plain numbers instead.
    """
    if not all(spec.columns for spec in signature.inputs):
        return number_rows(signature, inputs)
    import pandas as pd

    parts = [pd.DataFrame(inputs[spec.name], columns=spec.columns) for spec in signature.inputs]
    return parts[0] if len(parts) == 1 else pd.concat(parts, axis=1)


@dataclass(frozen=True, slots=True)
class Categories:
    """Known texts by column; one that is missing or not among them is NaN to the model."""

    columns: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(
        cls, columns: Sequence[str], texts: npt.NDArray[Any], *, min_rows: int = 1, most: int = 10_000
    ) -> Self:
        """Collect the texts (rows, columns) that occur in `min_rows` rows, the `most` frequent ones, sorted."""
        found = {}
        for place, name in enumerate(columns):
            known = [text for text in texts[:, place].tolist() if text is not None]
            values, counts = np.unique(np.array(known, dtype=np.str_), return_counts=True)
            frequent = np.flatnonzero(counts >= min_rows)
            kept = frequent[np.argsort(-counts[frequent], kind="stable")[:most]]
            found[name] = tuple(sorted(values[kept].tolist()))
        return cls(found)

    @classmethod
    def find(cls, folder: Path) -> Self | None:
        """Read the file in a model's folder, or None if there is none. Raises: ArtifactRefused if it is not one."""
        path = folder / CATEGORIES_FILE
        if not path.is_file():
            return None
        found = json.loads(path.read_text())
        if not isinstance(found, dict) or not all(
            isinstance(texts, list) and all(isinstance(text, str) for text in texts)
            for texts in found.values()
        ):
            raise ArtifactRefused(f"{CATEGORIES_FILE} must hold lists of texts by column")
        return cls({name: tuple(texts) for name, texts in found.items()})

    def save(self, folder: Path) -> None:
        """Write the file into a model's folder."""
        (folder / CATEGORIES_FILE).write_text(
            json.dumps({n: list(texts) for n, texts in self.columns.items()})
        )

    def codes(self, names: Sequence[str], texts: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Convert texts (rows, columns) to places in the lists, as float32; NaN for what is not known."""
        out = np.full(texts.shape, np.nan, dtype=np.float32)
        for column, name in enumerate(names):
            place = {text: float(index) for index, text in enumerate(self.columns[name])}
            out[:, column] = [place.get(text, np.nan) for text in texts[:, column]]
        return out


# Messages that lead to a tensor or a node, by the numbers of their fields.
_MESSAGES: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}  # fmt: skip
_EXTERNAL: Final = {13: "external_data", 14: "data_location"}  # of a tensor
_OPERATOR: Final = 4  # of a node
_READS_FILES: Final = (b"EPContext",)  # a graph that was compiled for a device, kept in a file
_NO_FOLDER: Final = "/nonexistent"  # where the reader would look, not the working directory
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT, _LARGEST_TAG = 10, 0xFFFF_FFFF


def open_graph(path: Path, **options: Any) -> Any:
    """Open a graph as a session of ONNX Runtime, whose initializers lie in the file alone.

    options: of the session, such as its threads or `providers`.
    Raises: ArtifactRefused if a tensor lies elsewhere; what ONNX Runtime raises for a graph that it cannot run.
    """
    import onnxruntime  # late: an extra

    data = path.read_bytes()
    refuse_other_files(data)
    providers = options.pop("providers", None)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    for name, value in options.items():
        setattr(settings, name, value)
    settings.add_session_config_entry("session.load_model_format", "ONNX")  # its own format is not walked
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", _NO_FOLDER)
    return onnxruntime.InferenceSession(data, settings, providers=providers)


def refuse_other_files(data: bytes) -> None:
    """Check that no tensor and no operator of a graph names another file. Raises: ArtifactRefused."""
    messages = [("model", memoryview(data))]
    while messages:
        kind, content = messages.pop()
        inside = _MESSAGES[kind]
        position = 0
        while position < len(content):
            number, value, position = _field(content, position)
            if kind == "tensor" and number in _EXTERNAL and value not in (0, b""):
                raise ArtifactRefused(
                    f"model.onnx keeps a tensor elsewhere ({_EXTERNAL[number]}): only tensors in the file are read; save it "
                    "with onnx.save(…, save_as_external_data=False)"
                )
            if not isinstance(value, memoryview):
                continue
            if kind == "node" and number == _OPERATOR and value.tobytes() in _READS_FILES:
                raise ArtifactRefused(
                    f"model.onnx has the operator {value.tobytes().decode()}, which reads files"
                )
            if number in inside:
                messages.append((inside[number], value))


def _field(content: memoryview, position: int) -> tuple[int, int | memoryview, int]:
    """Read the field at a position: its number, its value and where the next one begins. Raises: ArtifactRefused."""
    tag, position = _varint(content, position)
    number, wire = tag >> 3, tag & 7
    if wire == _VARINT:
        value, end = _varint(content, position)
        known = True
    else:
        size = {_FIXED64: 8, _FIXED32: 4}.get(wire)
        known = size is not None or wire == _BYTES
        if size is None and known:
            size, position = _varint(content, position)
        end = position + (size or 0)
        value = content[position:end]  # type: ignore[assignment]  # a number above
    if not known or not number or tag > _LARGEST_TAG or end > len(content):
        raise ArtifactRefused(f"model.onnx cannot be read: no field of a graph begins with {tag:#x}")
    return number, value, end


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    """Read a number and where it ends. Raises: ArtifactRefused."""
    value = 0
    for place, byte in enumerate(content[position : position + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:  # noqa: PLR2004 - the last byte of a number
            return value, position + place + 1
    raise ArtifactRefused("model.onnx cannot be read: it ends, or goes wrong, in the middle of a number")
