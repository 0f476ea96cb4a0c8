"""The formats of model files that may be served, by file name, and what such a file begins with.

Everything else is refused. None of these formats is a pickle, and no file beside them may hold one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from toque.functions.model_formats.errors import ArtifactRefused
from toque.functions.model_formats.text_classifier import CLASSIFIER_FILE
from toque.registry.errors import InvalidInput
from toque.registry.models.code_files import disguised_files
from toque.registry.store.blobs import LocalFile, scan

_HEAD_BYTES = 64


@dataclass(frozen=True, slots=True)
class Format:
    """One format: its file's name, what it is, how its file begins, and what reads it.

    begins: whether a file that begins with these bytes is one. remedy: how such a file is written. modules: that are
    imported to read it, some of them late, by libraries. distributions: whose releases decide how it is read.
    """

    file: str
    name: str
    begins: Callable[[bytes], bool]
    remedy: str
    modules: tuple[str, ...]
    distributions: tuple[str, ...]


def _is_zip(head: bytes) -> bool:
    return head.startswith(b"PK\x03\x04")


# What torch imports when it reads its first program, which takes seconds; later programs take some 20 ms.
_PROGRAM_MODULES = (
    "toque.functions.model_formats.program",
    "torch._dynamo",
    "torch.export._trace",
    "torch.export._unlift",
    "torch.export.pt2_archive._package",
    "networkx",
)
PROGRAM_FILE = "model.pt2"
PYTHON_MODEL = "python_model.json"
_HEADER_BYTES = 8  # of safetensors: the length of the JSON that follows
FORMATS: dict[str, Format] = {
    each.file: each
    for each in (
        Format(
            PROGRAM_FILE, "a program of torch.export", _is_zip, "write it with toque.functions.training's save_program",
            _PROGRAM_MODULES, ("torch",),
        ),
        Format(
            "model.onnx", "an ONNX graph", lambda head: head.startswith(b"\x08"), "write it with onnx.save",
            ("onnxruntime",), ("onnxruntime", "onnxruntime-gpu"),
        ),
        Format(
            "model.skops", "a model saved by skops", _is_zip, "write it with skops.io.dump",
            ("skops.io", "pandas"), ("skops", "scikit-learn"),
        ),
        Format(
            "model.ubj", "an XGBoost model", lambda head: head.startswith(b"{"), "write it with Booster.save_model",
            ("xgboost",), ("xgboost", "xgboost-cpu"),
        ),
        Format(
            "model.txt", "a LightGBM model", lambda head: head.startswith(b"tree"),
            "write it with Booster.save_model", ("lightgbm",), ("lightgbm",),
        ),
        Format(
            PYTHON_MODEL, "the name of a class in the project's SCORERS", lambda head: head.lstrip().startswith(b"{"),
            'write {"scorer": "NAME"} into it', (), (),
        ),
        Format(
            CLASSIFIER_FILE, "a Hugging Face folder's weights", lambda head: head[_HEADER_BYTES:].startswith(b"{"),
            "write it with save_pretrained", ("torch._dynamo", "transformers.modeling_utils"), ("torch", "transformers"),
        ),
    )
}  # fmt: skip
"""The allow list: format by the name of its file."""


def format_of(folder: Path) -> Format:
    """Find the one model in a folder. Raises: ArtifactRefused if it has none, several, or one of other content."""
    found = [each for name, each in FORMATS.items() if (folder / name).is_file()]
    if not found:
        raise ArtifactRefused(
            f"no {PROGRAM_FILE} and none of {[*FORMATS][1:]} in {folder}: it holds "
            f"{sorted(p.name for p in folder.glob('*'))}; export the model to one of these formats"
        )
    if found[0].file == PROGRAM_FILE:
        found = found[:1]  # other formats of the same program may lie beside it
    elif found[-1].file == CLASSIFIER_FILE:
        found = (
            found[:-1] or found
        )  # which are what an exported graph was made of, or a project's class reads
    if len(found) > 1:
        raise ArtifactRefused(
            f"{folder} holds {[each.file for each in found]}: one version is one model; keep one of them"
        )
    (only,) = found
    with (folder / only.file).open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not only.begins(head):
        raise ArtifactRefused(
            f"{only.file} cannot be read: it begins with {head[:8]!r}, which is not {only.name}; {only.remedy}"
        )
    return only


def inspect(folder: Path) -> tuple[Format, dict[str, LocalFile]]:
    """Find a folder's model, and its files by path; no library parses any of them.

    Raises: ArtifactRefused if it has no model that may be served, or a file that can execute code when it is loaded.
    """
    found = format_of(folder)
    try:
        files = scan(folder)
    except InvalidInput as error:
        raise ArtifactRefused(str(error)) from error
    code = disguised_files(files)
    if code:
        raise ArtifactRefused(
            f"{[*code]} can execute code when loaded, and pickles are never loaded: export the model to one of {[*FORMATS]}"
        )
    return found, files
