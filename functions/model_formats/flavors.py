"""Formats of models trained elsewhere, each read safely: ONNX, skops, XGBoost, LightGBM, a project's class.

A version's folder holds one model file; its name says which flavor it is (`.formats`). A library is imported when a file of its format is
read, and comes with `pip install toque[flavors]`. Nothing is unpickled: skops refuses types that it does not know, the other
formats hold no code, and a project's own class is found in its `SCORERS`, never in the version's files.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from functions.model_formats.errors import ArtifactRefused, TrainingDataError
from registry.models import Signature, TensorSpec

Array = npt.NDArray[Any]
Answer = Callable[[Mapping[str, Array]], Mapping[str, Any]]
"""Inputs by name to outputs by name. Texts are object arrays of `str`, None where missing."""


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


def load_answer(folder: Path, name: str, signature: Signature) -> Answer:
    """Load the model file `name` as a function from inputs to outputs, checked against the signature if possible.

    Raises: ArtifactRefused if the library is not installed, cannot read the file, or the file does not fit the signature.
    """
    try:
        return FLAVORS[name](folder / name, signature)
    except ImportError as error:
        raise ArtifactRefused(
            f"{name} needs {error.name}, which is not installed: pip install toque[flavors]"
        ) from error
    except (ArtifactRefused, TrainingDataError, MemoryError):
        raise
    except Exception as error:  # each library has errors of its own for a file that it cannot read
        raise ArtifactRefused(f"{name} cannot be read: {error}") from error


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

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # a replica has the cores it asked for
    options.log_severity_level = 3
    # from bytes, so that the file can name no other file to be read
    session = onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=onnxruntime.get_available_providers()
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


def _sklearn(path: Path, signature: Signature, *, trusted_types: Collection[str] = ()) -> Answer:
    """Read a model of scikit-learn. trusted_types: names of classes that may be made beside those that skops knows."""
    from skops.io import get_untrusted_types, load

    unknown = sorted(set(get_untrusted_types(file=path)) - set(trusted_types))
    if unknown:
        raise ArtifactRefused(
            f"{path.name} holds {unknown}, which skops does not know to be safe: have a class in the project's SCORERS load it"
        )
    model = load(path, trusted=[*trusted_types])
    (output,) = _only(signature.outputs)
    predict = model.predict_proba if hasattr(model, "predict_proba") else model.predict
    frame = _frame if all(spec.columns for spec in signature.inputs) else _matrix
    return lambda inputs: {output: predict(frame(signature, inputs))}


def _xgboost(path: Path, signature: Signature) -> Answer:
    from xgboost import Booster

    model = Booster({"nthread": 1})
    model.load_model(path)
    _check_columns(signature, model.feature_names)
    (output,) = _only(signature.outputs)
    return lambda inputs: {output: model.inplace_predict(_matrix(signature, inputs), validate_features=False)}


def _lightgbm(path: Path, signature: Signature) -> Answer:
    from lightgbm import Booster

    model = Booster(model_file=path)
    names = model.feature_name()
    _check_columns(signature, None if names == [f"Column_{i}" for i in range(len(names))] else names)
    (output,) = _only(signature.outputs)
    return lambda inputs: {output: model.predict(_matrix(signature, inputs), num_threads=1)}


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
    "model.skops": _sklearn,
    "model.ubj": _xgboost,
    "model.txt": _lightgbm,
    "python_model.json": _python,
}


def _only(outputs: Sequence[TensorSpec]) -> tuple[str]:
    if len(outputs) != 1:
        raise ArtifactRefused(
            f"the signature has {len(outputs)} outputs, such a model gives one: {[s.name for s in outputs]}"
        )
    return (outputs[0].name,)


def _check_columns(signature: Signature, names: Sequence[str] | None) -> None:
    """Refuse columns in another order than the model learnt, for which it would answer wrongly."""
    texts = [spec.name for spec in signature.inputs if spec.datatype == "BYTES"]
    if texts:
        raise ArtifactRefused(
            f"input {texts[0]!r} is BYTES: this model takes numbers only; encode texts before it"
        )
    columns = [name for spec in signature.inputs for name in spec.columns or ()]
    if names is not None and columns and list(names) != columns:
        raise ArtifactRefused(f"the model learnt the columns {list(names)}, the signature names {columns}")


def _matrix(signature: Signature, inputs: Mapping[str, Array]) -> Array:
    """Join all inputs side by side, as (rows, columns)."""
    parts = [inputs[spec.name] for spec in signature.inputs]
    flat = [part.reshape(len(part), -1) for part in parts]
    return flat[0] if len(flat) == 1 else np.hstack(flat)


def _frame(signature: Signature, inputs: Mapping[str, Array]) -> Any:
    """Join all inputs as a table with named columns, by which a pipeline of scikit-learn may select."""
    import pandas as pd

    parts = [pd.DataFrame(inputs[spec.name], columns=spec.columns) for spec in signature.inputs]
    return parts[0] if len(parts) == 1 else pd.concat(parts, axis=1)
