"""Opening of ONNX graphs that hold all their tensors themselves.

A tensor may say that its bytes lie in another file, or at an address in memory. ONNX Runtime reads them there, relative to the working
directory if the graph came as bytes, so each tensor of the file is looked at before: those of branches, of attributes,
of functions and of sparse tensors too. The file is walked as protocol buffers are written, without a library's parser.

Source: onnx/onnx.proto; https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from toque.functions.model_formats.errors import ArtifactRefused

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
