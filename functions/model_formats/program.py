"""Model files of exported torch programs, written without pickle and inspected before they are read.

`torch.export.load` of torch 2.13 is no safe reader: it unpickles sample inputs and whatever a payload table marks as
pickled, resolves any operator name under `torch` or `operator` (`torch.os.system` included), hands size expressions to
sympy's `eval` and compiles names and guard strings into Python. So `save_program` writes no such parts, and
`load_program` reads the archive itself first and refuses every member, operator, name and expression that a plain
tensor program has no need of. Only then does torch see it.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from toque.functions.model_formats.errors import ArtifactRefused, TrainingError
from toque.functions.model_formats.operators import find_retained, is_allowed, zero_new_memory
from toque.registry.models.code_files import open_archive

_MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|"
    r"models/model\.json|data/sample_inputs/model\.pt|"
    r"data/weights/(weight_\d+|model_weights_config\.json)|"
    r"data/constants/(tensor_\d+|model_constants_config\.json)"
)
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*|")  # `0.weight` is a layer of nn.Sequential
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.[a-z_][a-z0-9_]*\.[A-Za-z0-9_]+|_operator\.(add|sub|mul|floordiv|getitem)"
)
_ATEN = "torch.ops.aten."
_MODEL, _SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
_LARGEST_DOCUMENT_BYTES = 32 << 20
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    json.JSONDecodeError,
    UnicodeDecodeError,
    RuntimeError,
)
# Possessive: a text that does not match is refused in linear time, however its digits could be divided.
_EXPRESSION = re.compile(
    r"(Symbol|Integer|Add|Mul|Max|Min|FloorDiv|positive|integer|nonnegative|True|'[su]\d++'|\d++|[(),= +*-])*+"
)
_SPEC_TYPES = {None, "builtins.tuple", "builtins.list", "builtins.dict"}
_VERSION = re.compile(r"[0-9A-Za-z.+]+")
_PARITY_ATOL = 1e-5

Forward = Callable[..., Any]
# torch traces, and reads programs, by what it patches in the whole process: two exports at once break each other and whatever is
# compiled after, two reads are refused, and a read breaks an export.
_one_at_a_time = threading.Lock()


def export_program(model: nn.Module, inputs: Mapping[str, Tensor]) -> torch.export.ExportedProgram:
    """Export a model whose first dimension is the batch, for any batch size.

    inputs: the arguments of `forward` by name, in order, with at least two rows.
    Raises: TrainingError if the program does not answer as the model does, for one row and for many.
    """
    model = model.eval()
    dynamic = {name: {0: torch.export.Dim.DYNAMIC} for name in inputs}
    with _one_at_a_time:
        program = torch.export.export(model, tuple(inputs.values()), dynamic_shapes=dynamic)
    _check_parity(model, program.module(), inputs)
    return program


def save_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a program to `path` (.pt2) without sample inputs, guards, stack traces or anything pickled.

    Raises: ArtifactRefused if the program itself needs more than tensors and operators.
    """
    _refuse_retained(program)
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom"):
            node.meta.pop(key, None)
    program._example_inputs = None  # noqa: SLF001 - torch has no public way to leave them out
    program._guards_code = []  # noqa: SLF001 - no public way; `ScoringModel` checks shapes by the signature
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    inspect_program(buffer.getvalue())
    path.write_bytes(buffer.getvalue())


def copy_without_samples(source: Path, target: Path) -> None:
    """Rewrite an archive of `torch.export.save` as `save_program` writes it, without reading any pickle.

    Sample inputs, guards, and what nodes remember of their source are left out. Tensors are copied piece by piece. Raises:
    ArtifactRefused if more is needed than a tensor program; nothing is written then.
    """
    try:
        with _archive(source) as archive, zipfile.ZipFile(target, "w") as written:
            for name, info in _members(archive, samples=True):
                part = zipfile.ZipInfo(info.filename)
                if name == _SAMPLES:
                    written.writestr(part, b"")
                elif name == _MODEL:
                    written.writestr(part, json.dumps(_bare(_document(archive, info))))
                else:
                    part.file_size = info.file_size
                    with archive.open(info) as content, written.open(part, "w") as copy:
                        shutil.copyfileobj(content, copy)
        inspect_program(target)
    except BaseException as error:
        target.unlink(missing_ok=True)
        if isinstance(error, _UNREADABLE):
            raise ArtifactRefused(f"not an exported program: {error}") from error
        raise


def _bare(value: Any) -> Any:
    """Empty what a JSON value says beside the program: the metadata of nodes, and guards."""
    if isinstance(value, list):
        return [_bare(each) for each in value]
    if not isinstance(value, dict):
        return value
    empty: dict[str, Any] = {"metadata": {}, "guards_code": []}
    return {name: empty.get(name, _bare(child)) for name, child in value.items()}


def load_program(data: bytes, *, device: str = "cpu") -> nn.Module:
    """Read a program as a callable module.

    device: where its weights and constants are put, and what it makes by itself (`arange`, `zeros`) is made.
    Raises: ArtifactRefused if it holds more than a tensor program.
    """
    inspect_program(data)
    with _one_at_a_time:
        program = torch.export.load(io.BytesIO(data))
    _refuse_retained(program)
    zero_new_memory(program.graph)
    if device != "cpu":
        program = move_to_device_pass(program, device)
    module = program.module(check_guards=False)
    for hooks in (module._forward_pre_hooks, module._forward_hooks):  # noqa: SLF001 - there is no public way
        hooks.clear()  # they check shapes in 0.2 ms a call; `ScoringModel` checks them by the signature in 0.01 ms
    return module


def _refuse_retained(program: torch.export.ExportedProgram) -> None:
    """Refuse a program that keeps something of a request for those after it. Raises: ArtifactRefused."""
    name = find_retained(program.graph)
    if name is not None or program.graph_signature.buffers_to_mutate:
        raise ArtifactRefused(
            f"the program writes into its own weights or inputs ({name or 'a buffer'}), so that one request would be seen in the "
            "answer to another: have it compute new tensors, and export it in eval mode"
        )


def inspect_program(source: bytes | Path) -> None:
    """Refuse an archive that could make `torch.export.load` do anything but build a tensor program.

    Raises: ArtifactRefused, naming the member or value.
    """
    try:
        with _archive(source) as archive:
            members = _members(archive)
            documents = {
                name: _document(archive, member) for name, member in members if name.endswith(".json")
            }
    except _UNREADABLE as error:
        raise ArtifactRefused(f"not an exported program: {error}") from error
    required = (
        _MODEL,
        "data/weights/model_weights_config.json",
        "data/constants/model_constants_config.json",
    )
    for name in required:
        if name not in documents:
            raise ArtifactRefused(f"not an exported program: {name} is absent")
    _check_payloads(documents["data/weights/model_weights_config.json"], "weight_")
    _check_payloads(documents["data/constants/model_constants_config.json"], "tensor_")
    _check_value(documents[_MODEL], "model")


def _archive(source: bytes | Path) -> zipfile.ZipFile:
    return open_archive(io.BytesIO(source) if isinstance(source, bytes) else source)


def _document(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Any:
    """Parse a member of JSON, which takes some twenty times its size in memory. Raises: ArtifactRefused if it is too large."""
    if member.file_size > _LARGEST_DOCUMENT_BYTES:
        raise ArtifactRefused(
            f"{member.filename} has {member.file_size:,} bytes: at most {_LARGEST_DOCUMENT_BYTES:,} are read"
        )
    return json.loads(archive.read(member))


def _members(archive: zipfile.ZipFile, *, samples: bool = False) -> list[tuple[str, zipfile.ZipInfo]]:
    """List members by their name below the archive's one top folder. samples: whether pickled inputs may be among them."""
    found: dict[str, zipfile.ZipInfo] = {}
    tops = set()
    for info in archive.infolist():
        top, _, name = info.filename.partition("/")
        tops.add(top)
        if not _MEMBERS.fullmatch(name) or name in found or len(tops) > 1:
            raise ArtifactRefused(f"archive member {info.filename!r} has no place in a tensor program")
        if name == _SAMPLES and info.file_size > 0 and not samples:
            raise ArtifactRefused(
                "the archive holds pickled sample inputs: export it again with save_program"
            )
        found[name] = info
    return list(found.items())


def _check_payloads(document: Any, prefix: str) -> None:
    entries = document.get("config") if isinstance(document, dict) else None
    if not isinstance(entries, dict):
        raise ArtifactRefused(f"the table of {prefix}* payloads is not a table")
    for name, entry in entries.items():
        path = entry.get("path_name") if isinstance(entry, dict) else None
        if not isinstance(path, str) or not re.fullmatch(rf"{prefix}\d+", path):
            raise ArtifactRefused(f"payload {name!r} points at {path!r}, not at a tensor")
        if entry.get("use_pickle") is not False or not isinstance(entry.get("tensor_meta"), dict):
            raise ArtifactRefused(f"payload {name!r} is pickled: only raw tensors are read")
        _check_value(entry, name)
        _check_text(name, "payload name", _NAME)


def _check_value(value: Any, key: str) -> None:
    """Check every text in a JSON value against the pattern that its key allows."""
    if key in _UNUSED and value not in (None, "", [], {}):
        raise ArtifactRefused(
            f"the program holds {key}={value!r}: a tensor program needs none; use save_program"
        )
    if isinstance(value, dict):
        for name, child in value.items():
            _check_text(name, "key", _NAME)
            _check_value(child, name)
    elif isinstance(value, list):
        for child in value:
            _check_value(child, key)
    elif isinstance(value, str):
        _TEXTS.get(key, _check_plain)(value, key)


def _check_plain(text: str, key: str) -> None:
    _check_text(text, key, _NAME)


def _check_operator(text: str, key: str) -> None:
    _check_text(text, key, _OPERATOR)
    if text.startswith(_ATEN) and not is_allowed(text.removeprefix(_ATEN)):
        raise ArtifactRefused(
            f"operator {text!r} is not among those that compute their answer from their inputs alone: write the model without "
            "it, such as torch.zeros for memory that is filled later"
        )


def _check_expression(text: str, key: str) -> None:
    _check_text(text, key, _EXPRESSION)


def _check_version(text: str, key: str) -> None:
    _check_text(text, key, _VERSION)


def _check_spec(text: str, key: str) -> None:
    """Check a pytree spec, JSON inside JSON: only tuples, lists and dicts with text keys may be rebuilt from it."""
    try:
        protocol, root = json.loads(text)
    except (ValueError, TypeError) as error:
        raise ArtifactRefused(f"{key} is not a tree of inputs: {error}") from error
    for node in _nodes(root):
        context = json.loads(node["context"]) if isinstance(node.get("context"), str) else node.get("context")
        plain = context is None or (
            isinstance(context, list) and all(isinstance(item, str) for item in context)
        )
        if protocol != 1 or node.get("type") not in _SPEC_TYPES or not plain:
            raise ArtifactRefused(
                f"{key} rebuilds {node.get('type')!r} with {context!r}: only plain containers are read"
            )
        for name in context or ():
            _check_text(name, key, _NAME)


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(node, dict):
        raise ArtifactRefused(f"a tree of inputs holds {node!r}")
    yield node
    for child in node.get("children_spec", ()):
        yield from _nodes(child)


def _check_text(text: Any, key: str, pattern: re.Pattern[str]) -> None:
    if not isinstance(text, str) or not pattern.fullmatch(text):
        raise ArtifactRefused(f"{key}={text!r} is not of the form that a tensor program writes")


_TEXTS: dict[str, Callable[[str, str], None]] = {
    "target": _check_operator,
    "expr_str": _check_expression,
    "in_spec": _check_spec,
    "out_spec": _check_spec,
    "torch_version": _check_version,
}
_UNUSED = {
    "as_graph",
    "as_operator",
    "as_custom_obj",
    "as_complex",
    "guards_code",
    "metadata",
    "custom_obj_values",
    "treespec_namedtuple_fields",
}


def _check_parity(model: nn.Module, program: Forward, inputs: Mapping[str, Tensor]) -> None:
    for rows in (1, min(2, _rows(inputs)), _rows(inputs)):
        part = [value[:rows] for value in inputs.values()]
        with torch.no_grad():
            wanted, got = _as_tuple(model(*part)), _as_tuple(program(*part))
        for number, (left, right) in enumerate(zip(wanted, got, strict=True)):
            gap = float(np.nanmax((left - right).abs().numpy(), initial=0.0))
            most = max(1.0, float(np.nanmax(left.abs().numpy(), initial=0.0)))
            if left.shape != right.shape or not gap <= _PARITY_ATOL * most:
                raise TrainingError(
                    f"the exported program differs from the model on {rows} rows: output {number} by {gap:.3g} "
                    f"(shapes {tuple(left.shape)} and {tuple(right.shape)}); it was not saved"
                )


def _rows(inputs: Mapping[str, Tensor]) -> int:
    return next(iter(inputs.values())).shape[0]


def _as_tuple(output: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else tuple(output)
