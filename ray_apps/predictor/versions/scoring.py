"""Calls an exported program without the wrappers that torch puts around it, on the CPU or a CUDA device.

`ScoringModel` checks and converts whatever it is given; the predictor has done that already, against the same
signature. For a small model the wrappers cost as much as the model, so the program's own function is called on
plain attributes. A program that cannot be called so, or answers its example differently then, is left to `ScoringModel`.
Versions are saved as plain operators, which any reader of torch programs knows; a kernel of the platform that computes
the same is put in where a program is placed on a device, also for versions saved before there was one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, replace_pattern, wrap
from torch.fx.graph import CodeGen
from torch.nn import functional

from toque.functions.model_formats.load import PROGRAM_FILE, ScoringModel, example_arrays, load
from toque.functions.model_formats.program import load_program
from toque.kernels.encoder import encode_linear
from toque.kernels.hashing import hash_strings
from toque.ray_apps.predictor.protocol.datatypes import Array
from toque.ray_apps.predictor.protocol.errors import DeviceFailed, DeviceOutOfMemory
from toque.ray_apps.predictor.versions.cuda_scoring import (
    CudaDevice,
    CudaScorer,
    Device,
    Outputs,
    UnfitForDevice,
    samples,
)
from toque.ray_apps.predictor.versions.loaded import Scorer
from toque.registry.models import Signature

wrap("encode_linear")
_aten = torch.ops.aten
DIRECT: Mapping[Any, Callable[..., Any]] = {
    _aten.add.Tensor: torch.add,
    _aten.addmm.default: torch.addmm,
    _aten.cat.default: torch.cat,
    _aten.clamp.default: torch.clamp,
    _aten.contiguous.default: torch.Tensor.contiguous,
    _aten.div.Tensor: torch.div,
    _aten.dropout.default: torch.dropout,
    _aten.embedding.default: torch.embedding,
    _aten.eq.Tensor: torch.eq,
    _aten.flatten.using_ints: torch.flatten,
    _aten.gather.default: torch.gather,
    _aten.gelu.default: functional.gelu,
    _aten.isfinite.default: torch.isfinite,
    _aten.layer_norm.default: torch.layer_norm,
    _aten.linear.default: functional.linear,
    _aten.matmul.default: torch.matmul,
    _aten.mul.Tensor: torch.mul,
    _aten.pow.Tensor_Scalar: torch.pow,
    _aten.relu.default: torch.relu,
    _aten.rsqrt.default: torch.rsqrt,
    _aten.searchsorted.Tensor: torch.searchsorted,
    _aten.sigmoid.default: torch.sigmoid,
    _aten.silu.default: functional.silu,
    _aten.softmax.int: torch.softmax,
    _aten.sub.Tensor: torch.sub,
    _aten.t.default: torch.t,
    _aten.tanh.default: torch.tanh,
    _aten.unsqueeze.default: torch.unsqueeze,
    _aten.where.Scalar: torch.where,
    _aten.where.ScalarOther: torch.where,
    _aten.where.self: torch.where,
}

"""Function by ATen operator, without the dispatch by name that takes a quarter to a third of a small program."""
_log = logging.getLogger("ray.serve")


class DirectScorer:
    """Scores inputs that are known to fit a signature, on the CPU.

    run: the program, from tensors in the signature's order to a tuple of tensors.
    """

    def __init__(self, run: Callable[..., Outputs], signature: Signature) -> None:
        self._run = run
        self._inputs = [(spec.name, spec.datatype == "BYTES") for spec in signature.inputs]
        self._outputs = [spec.name for spec in signature.outputs]

    def predict(self, inputs: Mapping[str, Any]) -> Mapping[str, Array]:
        """Score inputs, hashing texts; returns outputs by name. Raises: ValueError for bytes that are no text."""
        tensors = [
            _tensor(hash_strings(inputs[name]) if text else inputs[name]) for name, text in self._inputs
        ]
        # no weight wants a gradient: a mode to say so costs more than it saves
        results = self._run(*tensors)
        return {name: result.numpy() for name, result in zip(self._outputs, results, strict=True)}


def load_scorer(
    folder: Path, signature: Signature, *, device: str = "cpu", trusted_types: Collection[str] = ()
) -> Scorer:
    """Load the artifact in a version's folder, to be called as directly as possible.

    device: "cuda" where a CUDA device was reserved for it. A program that cannot run there, or answers its example
    differently there, runs on the CPU, as other formats do. trusted_types: classes that a file of skops may name.
    Raises: what the artifact's reader raises for a file that it refuses, and the device for want of memory.
    """
    checked = load(folder, signature=signature, trusted_types=trusted_types)
    if not (folder / PROGRAM_FILE).is_file():
        return _CheckedScorer(checked)
    data = (folder / PROGRAM_FILE).read_bytes()
    if device == "cuda":
        on_device = _on_device(data, checked, signature)
        if on_device is not None:
            return on_device
    program = load_program(data)
    run = _without_wrappers(program) if isinstance(program, torch.fx.GraphModule) else None
    if run is None or signature.example is None:
        return _CheckedScorer(checked)
    direct = DirectScorer(run, signature)
    return direct if _has_parity(direct, checked, signature) else _CheckedScorer(checked)


def place_on_device(data: bytes, checked: ScoringModel, signature: Signature, device: Device) -> CudaScorer:
    """Load a program onto a device, and compare its answers with those of the CPU.

    Raises: UnfitForDevice if the program cannot be called directly, has no example or answers differently; what torch
    raises for a program that cannot run there; DeviceOutOfMemory, DeviceFailed.
    """
    if signature.example is None:
        raise UnfitForDevice("its signature has no example to compare by")
    with device.stream():
        program = load_program(data, device=str(device.torch_device))
    if isinstance(program, torch.fx.GraphModule):
        fuse(program)
    run = _without_wrappers(program) if isinstance(program, torch.fx.GraphModule) else None
    if run is None:
        raise UnfitForDevice("it calls modules")
    scorer = CudaScorer(run, signature, device)
    scorer.verify(_CheckedScorer(checked), _example_inputs(signature), example_arrays(signature))
    return scorer


def _on_device(data: bytes, checked: ScoringModel, signature: Signature) -> CudaScorer | None:
    if not torch.cuda.is_available():
        _log.warning(
            "a CUDA device was reserved, but torch %s finds none: the program runs on the CPU",
            torch.__version__,
        )
        return None
    try:
        return place_on_device(data, checked, signature, CudaDevice())
    except (DeviceOutOfMemory, DeviceFailed, torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # the CPU would answer, but slower than a reserved device promises
    except Exception as reason:  # noqa: BLE001 - operators fail in many ways where they are not made for a device
        _log.warning("the program runs on the CPU, not on the CUDA device that was reserved: %s", reason)
        return None


class _CheckedScorer:
    """Scores by `ScoringModel`: a model of another format, or a program that cannot be called directly."""

    def __init__(self, model: ScoringModel) -> None:
        self._model = model

    def predict(self, inputs: Mapping[str, Any]) -> Mapping[str, Array]:
        return self._model.predict(inputs)


def _tensor(array: Array) -> torch.Tensor:
    if not array.flags.carray:
        array = array.copy()
    return torch.from_numpy(array)


def _without_wrappers(program: torch.fx.GraphModule) -> Callable[..., Outputs] | None:
    """The program's own function, bound to a plain tree of its tensors; None if it calls modules."""
    root = SimpleNamespace()
    for node in program.graph.nodes:
        if node.op == "get_attr":
            _attach(root, program, node.target)
        elif node.op == "call_module":
            return None
        elif node.op == "call_function":
            node.target = DIRECT.get(node.target, node.target)
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


def _has_parity(direct: DirectScorer, checked: ScoringModel, signature: Signature) -> bool:
    """Whether both scorers answer the example, and several copies of it, with the same bits."""
    for inputs in samples(_example_inputs(signature), signature):
        wanted = checked.predict(inputs)
        try:
            got = direct.predict(inputs)
        except (TypeError, RuntimeError) as error:
            _log.warning("a program cannot be called directly, which is slower: %s", error)
            return False
        if any(not np.array_equal(wanted[name], got[name], equal_nan=True) for name in wanted):
            return False
    return True


def _example_inputs(signature: Signature) -> dict[str, Array]:
    """The inputs of the signature's example as a request has them, texts as texts."""
    given = signature.example or {}
    texts = {spec.name for spec in signature.inputs if spec.datatype == "BYTES"}
    return {
        name: np.array(given[name], dtype=object) if name in texts else array
        for name, array in example_arrays(signature).items()
    }


def fuse(program: GraphModule) -> int:
    """Replace the operators of a tabular network's first layer by `encode_linear`, in place; returns how many layers it found."""
    return len(replace_pattern(program, _operators, _kernel))


def _operators(
    numeric: Tensor,
    missing: Tensor,
    category: Tensor,
    left: Tensor,
    inverse_width: Tensor,
    table: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> Tensor:
    """What `toque.kernels.encoder.encode_linear_reference` is in a saved program."""
    embedded = _aten.flatten.using_ints(_aten.embedding.default(table, category), 1)
    above = _aten.sub.Tensor(_aten.unsqueeze.default(numeric, 2), left)
    shares = _aten.clamp.default(_aten.mul.Tensor(above, inverse_width), 0.0, 1.0)
    codes = [_aten.flatten.using_ints(shares, 1), numeric, missing, embedded]
    found: Tensor = _aten.linear.default(_aten.cat.default(codes, 1), weight, bias)
    return found


def _kernel(
    numeric: Tensor,
    missing: Tensor,
    category: Tensor,
    left: Tensor,
    inverse_width: Tensor,
    table: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> Tensor:
    return encode_linear(numeric, missing, category, left, inverse_width, table, weight, bias)


__all__ = ["DirectScorer", "fuse", "load_scorer", "place_on_device"]
