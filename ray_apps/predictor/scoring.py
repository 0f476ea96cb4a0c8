"""Calls an exported program without the wrappers that torch puts around it.

`ScoringModel` checks and converts whatever it is given; the predictor has done that already, against the same
signature. For a small model the wrappers cost as much as the model: here the program's own function is called on
plain attributes, and nothing else. A program that this cannot hold, or that answers its example differently this
way, is left to `ScoringModel`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.fx.graph import CodeGen

from functions.training.program import load_program
from functions.training.scoring import PROGRAM_FILE, ScoringModel, example_arrays, load
from kernels.hashing import hash_strings
from ray_apps.predictor.datatypes import Array
from ray_apps.predictor.loaded import Scorer
from registry.signature import Signature

__all__ = ["DirectScorer", "load_scorer"]

Outputs = tuple[torch.Tensor, ...]


class DirectScorer:
    """Scores inputs that are known to fit a signature.

    run: the program as a function of tensors in the signature's order, giving a tuple of tensors.
    """

    def __init__(self, run: Callable[..., Outputs], signature: Signature) -> None:
        self._run = run
        self._inputs = [(spec.name, spec.datatype == "BYTES") for spec in signature.inputs]
        self._outputs = [spec.name for spec in signature.outputs]

    def predict(self, inputs: Mapping[str, Any]) -> Mapping[str, Array]:
        """Outputs by name; texts are hashed here. Raises: ValueError for bytes that are no text."""
        tensors = [
            _tensor(hash_strings(inputs[name]) if text else inputs[name]) for name, text in self._inputs
        ]
        with torch.inference_mode():
            results = self._run(*tensors)
        return {name: result.numpy() for name, result in zip(self._outputs, results, strict=True)}


def load_scorer(folder: Path, signature: Signature) -> Scorer:
    """The artifact in a version's folder, called as directly as it can be.

    Raises: whatever the artifact's reader raises for a file that it refuses.
    """
    checked = load(folder, signature=signature)
    if not (folder / PROGRAM_FILE).is_file():
        return _Checked(checked)
    program = load_program((folder / PROGRAM_FILE).read_bytes())
    run = _bare(program) if isinstance(program, torch.fx.GraphModule) else None
    if run is None or signature.example is None:
        return _Checked(checked)
    direct = DirectScorer(run, signature)
    return direct if _agree(direct, checked, signature) else _Checked(checked)


class _Checked:
    """A model of another format, or a program that cannot be called directly."""

    def __init__(self, model: ScoringModel) -> None:
        self._model = model

    def predict(self, inputs: Mapping[str, Any]) -> Mapping[str, Array]:
        return self._model.predict(inputs)


def _tensor(array: Array) -> torch.Tensor:
    if not (array.flags.c_contiguous and array.flags.writeable):
        array = np.require(array, requirements=["C", "W"])
    return torch.from_numpy(array)


def _bare(program: torch.fx.GraphModule) -> Callable[..., Outputs] | None:
    """The program's function on a plain tree of its tensors; None if it calls modules."""
    root = SimpleNamespace()
    for node in program.graph.nodes:
        if node.op == "get_attr":
            _attach(root, program, node.target)
        elif node.op == "call_module":
            return None
    program.graph.set_codegen(CodeGen())  # plain arguments and a plain tuple instead of trees
    program.recompile()
    return partial(type(program).forward, root)


def _attach(root: SimpleNamespace, program: torch.nn.Module, path: str) -> None:
    *parents, name = path.split(".")
    source: Any = program
    for parent in parents:
        source = getattr(source, parent)
        if not hasattr(root, parent):
            setattr(root, parent, SimpleNamespace())
        root = getattr(root, parent)
    value = getattr(source, name)
    setattr(root, name, value.detach() if isinstance(value, torch.Tensor) else value)


def _agree(direct: DirectScorer, checked: ScoringModel, signature: Signature) -> bool:
    """Whether both answer the example alike, to the bit, for one row and for several."""
    example = example_arrays(signature)
    texts = {spec.name for spec in signature.inputs if spec.datatype == "BYTES"}
    plain = {
        name: np.array((signature.example or {})[name], dtype=object) if name in texts else array
        for name, array in example.items()
    }
    for inputs in (plain, {name: np.concatenate([array] * 3) for name, array in plain.items()}):
        wanted, got = checked.predict(inputs), direct.predict(inputs)
        if any(not np.array_equal(wanted[name], got[name], equal_nan=True) for name in wanted):
            return False
    return True
