"""Detection of files that can execute code when loaded: pickles, scripts, libraries, and archives of them.

An exported program (.pt2) is a zip of tables, raw tensors and a graph as JSON. `torch.export.load` unpickles its
sample inputs, payloads that a table marks as pickled, and custom objects; it runs libraries, and evaluates the
graph's symbolic expressions. Here everything pickled is inspected, and all but plain tensors counts as code;
expressions are not checked: load programs with a reader that checks them, as the predictor does.
"""

from __future__ import annotations

import json
import pickletools
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from registry.models.code_files.pickles import executes_code

if TYPE_CHECKING:
    from registry.store.blobs import LocalFile

_SUFFIXES = {".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle", ".py", ".pyc", ".so", ".npy.pkl"}
_ARCHIVED_SUFFIXES = _SUFFIXES | {".cpp", ".o", ".cubin", ".sh"}
_WEIGHT_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt"}
_PICKLE_STARTS = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
_ZIP_START = b"PK\x03\x04"
_CUSTOM_OBJECTS = ("custom_obj_", "opaque_obj_")
_MAX_BYTES = 64 << 20  # of an archive member that is inspected; a larger one counts as code

# A pickle of tensors calls these and nothing else.
_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_TENSOR_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {name}Storage" for name in _STORAGES),
}
_PLAIN_OPCODES = {
    "PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "GLOBAL", "REDUCE", "BINPERSID",
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "MEMOIZE",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS",
    "EMPTY_DICT", "SETITEM", "SETITEMS",
}  # fmt: skip


def executable_files(files: Mapping[str, LocalFile]) -> tuple[str, ...]:
    """List paths of files that can execute code when they are loaded."""
    return tuple(name for name, file in files.items() if _can_execute(file.path))


def _can_execute(path: Path) -> bool:
    if path.suffix.lower() in _SUFFIXES:
        return True
    with path.open("rb") as file:
        start = file.read(4)
        if start.startswith(_PICKLE_STARTS):
            return True
        may_be_archive = start == _ZIP_START or path.suffix.lower() == ".pt2"
        if may_be_archive and zipfile.is_zipfile(file) and _archive_can_execute(file):
            return True
        file.seek(0)
        return start != _ZIP_START and executes_code(file)


def _archive_can_execute(file: IO[bytes]) -> bool:
    """Whether an archive holds a pickle (as `torch.save` makes), a library, or a program with something pickled."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(_member_can_execute(archive, member) for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError):
        return True  # an archive that cannot be inspected


def _member_can_execute(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(member.filename)
    if path.name == "data.pkl" or path.suffix in _ARCHIVED_SUFFIXES or path.name.startswith(_CUSTOM_OBJECTS):
        return True
    if path.name.endswith(("weights_config.json", "constants_config.json")):
        return _marks_pickles(_content(archive, member))
    with archive.open(member) as content:
        start = content.read(4)
    if start == _ZIP_START:
        return not _holds_tensors_only(_content(archive, member))
    if path.suffix not in _WEIGHT_SUFFIXES:
        return False
    with archive.open(member) as content:
        return start.startswith(_PICKLE_STARTS) or executes_code(content)


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.file_size > _MAX_BYTES:
        raise ValueError(f"{member.filename} is too large to be inspected")
    return archive.read(member)


def _marks_pickles(table: bytes) -> bool:
    """Whether a program's table of payloads marks one of them as pickled, or as an object."""
    payloads = json.loads(table).get("config", {})
    return any(
        payload.get("use_pickle") or str(payload.get("path_name", "")).startswith(_CUSTOM_OBJECTS)
        for payload in payloads.values()
    )


def _holds_tensors_only(data: bytes) -> bool:
    """Whether an archive of `torch.save`, such as a program's sample inputs, is a pickle of plain tensors."""
    with zipfile.ZipFile(BytesIO(data)) as archive:
        pickles = [member for member in archive.infolist() if member.filename.endswith(".pkl")]
        return bool(pickles) and all(_is_plain(_content(archive, member)) for member in pickles)


def _is_plain(pickled: bytes) -> bool:
    return all(
        opcode.name in _PLAIN_OPCODES and (opcode.name != "GLOBAL" or argument in _TENSOR_GLOBALS)
        for opcode, argument, _ in pickletools.genops(pickled)
    )
