"""Which files of a version are data, by an allow list of formats and by content; all others can execute code when loaded.

A suffix says what a file claims to be. The content may not say otherwise: no pickle that calls something, no program, script or
library, nothing packed that cannot be looked into, no array of objects, no tag that has YAML make one. An archive is data if
its members are.

An exported program (.pt2) is an archive of tables, raw tensors and a graph as JSON. `torch.export.load` unpickles its
sample inputs, payloads that a table marks as pickled, and custom objects; it runs libraries, and evaluates the
graph's symbolic expressions. Here everything pickled is inspected, and all but plain tensors counts as code;
expressions are not checked: load programs with a reader that checks them, as the predictor does.
"""

from __future__ import annotations

import ast
import json
import mmap
import pickletools
import re
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Final

from toque.registry.models.code_files.archives import open_archive
from toque.registry.models.code_files.pickles import executes_code

if TYPE_CHECKING:
    from toque.registry.store.blobs import LocalFile

_SUFFIXES: Final = """
json jsonl ndjson txt md rst csv tsv yaml yml toml ini cfg xml jinja jinja2 log vocab merges tiktoken bpe html svg
safetensors gguf onnx onnx_data pt2 skops ubj lgb xgb cbm model spm tflite npy npz bin data dat raw weights idx
parquet arrow feather avro orc zip png jpg jpeg gif webp bmp tif tiff wav flac mp3 mp4
"""
_DATA: Final = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
"""Suffixes of data. A file without a suffix is judged by its content alone."""
_YAML: Final = frozenset({".yaml", ".yml"})
_ARCHIVES: Final = frozenset({".pt2", ".skops", ".npz", ".zip"})
_MLFLOW: Final = "MLmodel"  # is YAML
_HEAD_BYTES: Final = 4096
_ZIP_START: Final = b"PK"
_CODE_STARTS: Final = re.compile(
    rb"\x7fELF|[\xfe\xca]\xed\xfa[\xce\xcf]|[\xce\xcf]\xfa\xed\xfe|\xca\xfe\xba\xbe|#![ \t]*/|!<arch>\n|\0asm|BC\xc0\xde"  # programs
    rb"|\x1f\x8b\x08|BZh[1-9]1AY&SY|\xfd7zXZ\0|\x28\xb5\x2f\xfd|\x04\x22\x4d\x18|7z\xbc\xaf\x27\x1c|Rar!\x1a\x07"  # packed
    rb"|PK(\x03\x04|\x05\x06|\x07\x08)|\x89HDF\r\n\x1a\n"  # archives, and networks of Keras with functions in them
)
_TAR: Final = (257, b"ustar")
_PROGRAM: Final = (b"MZ", 0x3C, b"PE\0\0")  # of Windows, and where it says that the second beginning lies
_ZLIB: Final = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
_TAG: Final = re.compile(
    rb"(?:^|[\s\[{,:-])(?:!!(?!(?:str|int|float|bool|null|binary|map|seq|set|omap|pairs|timestamp|merge)\b)|!<|!ruby/)|%TAG"
)
_CUSTOM_OBJECTS: Final = ("custom_obj_", "opaque_obj_")
_TABLES: Final = ("weights_config.json", "constants_config.json")
_SAMPLES: Final = ".pt"  # an archive of torch.save in a program
_MAX_BYTES: Final = 64 << 20  # of an archive member that is inspected; a larger one counts as code

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
    """List paths of files that can execute code when they are loaded: all that are not of a format of data."""
    disguised = set(disguised_files(files))
    return tuple(path for path in files if not _has_data_suffix(path) or path in disguised)


def disguised_files(files: Mapping[str, LocalFile]) -> tuple[str, ...]:
    """List paths of files whose content can execute code when it is loaded, whatever their suffix says."""
    disguised = []
    for path, file in files.items():
        with file.path.open("rb") as content:
            if _can_execute(PurePosixPath(path), content, file.size):
                disguised.append(path)
    return tuple(disguised)


def _has_data_suffix(path: str) -> bool:
    suffix = PurePosixPath(path).suffix.lower()
    return not suffix or suffix in _DATA


def _can_execute(path: PurePosixPath, file: IO[bytes], size: int) -> bool:
    suffix = path.suffix.lower()
    head = file.read(_HEAD_BYTES)
    if suffix in _ARCHIVES and head.startswith(_ZIP_START):
        return _archive_can_execute(file, program=suffix == ".pt2")
    if suffix == ".npy" and _holds_objects(head):
        return True
    if (suffix in _YAML or path.name == _MLFLOW) and (b"\0" in head or _has_tags(file, size)):
        return True
    if _is_program_or_packed(head):
        return True
    file.seek(0)
    return executes_code(file, size)


def _is_program_or_packed(head: bytes) -> bool:
    if _CODE_STARTS.match(head) or head.startswith(_TAR[1], _TAR[0]):
        return True
    if head.startswith(_PROGRAM[0]):
        second = int.from_bytes(head[_PROGRAM[1] : _PROGRAM[1] + 4], "little")
        return head.startswith(_PROGRAM[2], second)
    if head.startswith(_ZLIB):
        with suppress(zlib.error):  # which random bytes of this beginning meet
            return bool(zlib.decompressobj().decompress(head, _MAX_BYTES))
    return False


def _has_tags(file: IO[bytes], size: int) -> bool:
    """Whether a YAML text has a tag that may make an object."""
    if not size:
        return False
    try:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            return _TAG.search(text) is not None
    except OSError:  # a member of an archive, whose size is bounded
        file.seek(0)
        return _TAG.search(file.read()) is not None


def _holds_objects(head: bytes) -> bool:
    """Whether the header of an array (.npy) says that its elements are pickled objects, or is too long to be seen."""
    if not head.startswith(b"\x93NUMPY"):
        return False
    start = 10 if head[6:7] == b"\x01" else 12  # after the length of the header
    end = start + int.from_bytes(head[8:start], "little")
    text = head[start:end].decode("latin-1")
    try:
        return end > _HEAD_BYTES or _names_objects(ast.literal_eval(text)["descr"])
    except (SyntaxError, ValueError, KeyError, TypeError, IndexError, MemoryError, RecursionError):
        return "O" in text


def _names_objects(descr: Any) -> bool:
    if isinstance(descr, str):
        return "O" in descr
    return any(_names_objects(field[1]) for field in descr)


def _archive_can_execute(file: IO[bytes], *, program: bool) -> bool:
    """Whether an archive holds a pickle (as `torch.save` makes), a library, or a program with something pickled."""
    try:
        with open_archive(file) as archive:
            return any(
                (_part_can_execute if program else _member_can_execute)(archive, member)
                for member in archive.infolist()
                if not member.is_dir()
            )
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError):
        return True  # an archive that cannot be inspected


def _member_can_execute(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(member.filename)
    if not _has_data_suffix(member.filename) or path.suffix.lower() in _ARCHIVES:
        return True
    with archive.open(member) as content:
        return _can_execute(path, content, member.file_size)


def _part_can_execute(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    """Whether a part of a program can execute code: pickled samples and objects, or what no program of tensors holds."""
    path = PurePosixPath(member.filename)
    if path.name.startswith(_CUSTOM_OBJECTS):
        return True
    if path.suffix == _SAMPLES:
        return member.file_size > 0 and not _holds_tensors_only(_content(archive, member))
    if path.name.endswith(_TABLES):
        return _marks_pickles(_content(archive, member))
    if path.suffix:
        return _member_can_execute(archive, member)
    return False  # raw tensors


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
    with open_archive(BytesIO(data)) as archive:
        pickles = [member for member in archive.infolist() if member.filename.endswith(".pkl")]
        return bool(pickles) and all(_is_plain(_content(archive, member)) for member in pickles)


def _is_plain(pickled: bytes) -> bool:
    return all(
        opcode.name in _PLAIN_OPCODES and (opcode.name != "GLOBAL" or argument in _TENSOR_GLOBALS)
        for opcode, argument, _ in pickletools.genops(pickled)
    )
