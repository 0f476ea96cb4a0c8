"""Which files of a version are data, by a list of formats and by content; all others can execute code when loaded.

A suffix says what a file claims to be. The content may not say otherwise, whatever the suffix: no pickle that calls something,
no program, script or library, no tar, nothing packed, no array of objects; in YAML, no tag that makes one. A zip archive is
data if its members are, two archives deep; it is known by its end, as its readers know it. LZMA has no magic number, so plain
numbers may look like it: what it unpacks to is judged, up to 64 MiB. Whatever lies deeper, is larger than that, is encrypted or
packed in another way counts as code.

An exported program (.pt2) is an archive of tables, raw tensors and a graph as JSON. `torch.export.load` unpickles its
sample inputs, payloads that a table marks as pickled, and custom objects; it runs libraries, and evaluates the
graph's symbolic expressions. Here everything pickled is inspected, and all but plain tensors counts as code;
expressions are not checked: load programs with a reader that checks them, as the predictor does.

Pickles of any protocol are found by content: protocols 0 and 1 have no header. Their opcodes are walked as the unpickler
would, with the depth of its stack and without the values: texts, tables and raw numbers meet an unknown opcode or an empty
stack within a few bytes, where an unpickler fails too. What goes on for too long to be walked to its end counts as code.
"""

from __future__ import annotations

import ast
import json
import lzma
import mmap
import pickletools
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import SEEK_CUR, SEEK_END, BufferedReader, BytesIO, FileIO
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Final

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
_PROGRAM_SUFFIX: Final = ".pt2"
_MLFLOW: Final = "MLmodel"  # is YAML
_HEAD_BYTES: Final = 4096
_ARCHIVE_STARTS: Final = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_ARCHIVE_END: Final = b"PK\x05\x06"
_TAIL_BYTES: Final = 22 + (1 << 16)  # in which an archive's end lies: a record, and a comment
_MAX_DEPTH: Final = 3  # of a content in archives, beginning with 1 for a member of the file itself
_CODE_STARTS: Final = re.compile(
    rb"\x7fELF|[\xfe\xca]\xed\xfa[\xce\xcf]|[\xce\xcf]\xfa\xed\xfe|\xca\xfe\xba\xbe|#![ \t]*/|!<arch>\n|\0asm|BC\xc0\xde"  # programs
    rb"|\x1f\x8b\x08|BZh[1-9](?:1AY&SY|\x17rE8P\x90)|\xfd7zXZ\0|LZIP\x01|\x28\xb5\x2f\xfd|\x04\x22\x4d\x18|[\x50-\x5f]\x2a\x4d\x18|ZF[\s\w+-]{19}|7z\xbc\xaf\x27\x1c|Rar!\x1a\x07"  # packed
    rb"|\x89HDF\r\n\x1a\n"  # networks of Keras with functions in them
)
_PROGRAM: Final = (b"MZ", 0x3C, b"PE\0\0")  # of Windows, and where it says that the second beginning lies
_NUMBERS: Final = re.compile(
    r"[<>|=]?[biufcSUVMm]\d+(\[\w+\])?"
)  # elements of an array, as NumPy writes them
_TAG: Final = re.compile(
    rb"(?:^|[\s\[{,:-])(?:!!(?!(?:str|int|float|bool|null|binary|map|seq|set|omap|pairs|timestamp|merge)\b)|!<|!ruby/)|%TAG"
)
_CUSTOM_OBJECTS: Final = ("custom_obj_", "opaque_obj_")
_TABLES: Final = ("weights_config.json", "constants_config.json")
_SAMPLES: Final = ".pt"  # an archive of torch.save in a program
_MAX_BYTES: Final = (
    64 << 20
)  # read at once, or unpacked, of a content that is looked into; a larger one counts as code

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
        with _File(FileIO(file.path)) as content:
            if _can_execute(PurePosixPath(path), content, file.size):
                disguised.append(path)
    return tuple(disguised)


class _Unreadable(Exception):  # noqa: N818 - a signal inside this module
    """What is needed to judge a content takes too much memory."""


class _File(BufferedReader):
    """File that is never read into memory as a whole, such as by an archive that says its directory is as large."""

    def read(self, size: int | None = -1, /) -> bytes:
        most = _MAX_BYTES + 1
        data = super().read(most if size is None or size < 0 else min(size, most))
        if len(data) == most:
            raise _Unreadable
        return data


def _has_data_suffix(path: str) -> bool:
    suffix = PurePosixPath(path).suffix.lower()
    return not suffix or suffix in _DATA


def _can_execute(path: PurePosixPath, file: IO[bytes], size: int, depth: int = 0) -> bool:
    """Whether a content can execute code. depth: number of archives and packings that it lies in."""
    if depth >= _MAX_DEPTH:
        return True
    head = file.read(_HEAD_BYTES)
    begins = head.startswith(_ARCHIVE_STARTS)
    if _archive_can_execute(path, file, size, depth, begins=begins):
        return True
    if (path.suffix.lower() in _YAML or path.name == _MLFLOW) and (b"\0" in head or _has_tags(file, size)):
        return True
    if _is_program_or_packed(head) or _holds_objects(head) or _unpacks_to_code(file, depth):
        return True
    file.seek(0)
    return not begins and executes_code(
        file, size
    )  # no unpickler goes beyond the first byte of such an archive


def _is_program_or_packed(head: bytes) -> bool:
    if _CODE_STARTS.match(head) or _is_tar(head):
        return True
    if head.startswith(_PROGRAM[0]):
        second = int.from_bytes(head[_PROGRAM[1] : _PROGRAM[1] + 4], "little")
        return head.startswith(_PROGRAM[2], second)
    stream = zlib.decompressobj()  # of any window
    with suppress(zlib.error):  # which random bytes of such a beginning meet
        begun = bool(stream.decompress(head, _MAX_BYTES))
        return begun or stream.eof or len(head) == _HEAD_BYTES
    return False


def _is_tar(head: bytes) -> bool:
    """Whether a file begins with the header of a tar's member, of any format: its sum is right."""
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _unpacks_to_code(file: IO[bytes], depth: int) -> bool:
    """Whether a file is LZMA of code, or of more than is looked into; what precedes an error counts, as its readers return it."""
    file.seek(0)
    unpacked = BytesIO()
    try:
        with suppress(lzma.LZMAError, EOFError), lzma.LZMAFile(file) as stream:
            while data := stream.read1():
                unpacked.write(data)
                if unpacked.tell() > _MAX_BYTES:
                    return True
    except MemoryError:  # its header asks for gigabytes
        return True
    size = unpacked.tell()
    unpacked.seek(0)
    return size > 0 and _can_execute(PurePosixPath(), unpacked, size, depth + 1)


def _has_tags(file: IO[bytes], size: int) -> bool:
    """Whether a YAML text has a tag that may make an object."""
    if not size:
        return False
    try:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            return _TAG.search(text) is not None
    except OSError:  # a member of an archive
        file.seek(0)
        return size > _MAX_BYTES or _TAG.search(file.read(size)) is not None


def _holds_objects(head: bytes) -> bool:
    """Whether the header of an array (.npy) says that its elements are pickled objects, or is too long to be seen."""
    if not head.startswith(b"\x93NUMPY"):
        return False
    start = 10 if head[6:7] == b"\x01" else 12  # after the length of the header
    end = start + int.from_bytes(head[8:start], "little")
    text = head[start:end].decode("latin-1")
    for readable in (text, text.replace("L", "")):  # numbers of Python 2, which NumPy reads too
        try:
            return end > _HEAD_BYTES or not _are_numbers(ast.literal_eval(readable)["descr"])
        except (SyntaxError, ValueError):
            continue  # NumPy cannot read it either
        except (KeyError, TypeError, IndexError, MemoryError, RecursionError):
            return True
    return False


def _are_numbers(descr: Any) -> bool:
    """Whether all elements are numbers, times or texts. descr: a code, a code and a shape, or a list of fields."""
    if isinstance(descr, str):
        return _NUMBERS.fullmatch(descr) is not None
    return (
        _are_numbers(descr[0]) if isinstance(descr, tuple) else all(_are_numbers(field[1]) for field in descr)
    )


def _archive_can_execute(
    path: PurePosixPath, file: IO[bytes], size: int, depth: int, *, begins: bool
) -> bool:
    """Whether a file holds an archive, with bytes before and after it or none, that has a member which is code.

    A member is code if it is a pickle (as `torch.save` makes), a library, or something pickled in a program. begins: whether
    the file begins as an archive, and so is one that cannot be inspected if it has no end.
    """
    file.seek(max(size - _TAIL_BYTES, 0))
    if _ARCHIVE_END not in file.read(_TAIL_BYTES):
        return begins
    judge = _part_can_execute if path.suffix.lower() == _PROGRAM_SUFFIX else _member_can_execute
    archive = None
    try:
        with suppress(zipfile.BadZipFile):
            archive = zipfile.ZipFile(file)
        if archive is None:
            return begins  # bytes that look like an end
        with archive:
            if depth and size > _MAX_BYTES:
                return True  # it is itself unpacked from its beginning, and its members lie anywhere in it
            return _fault(archive.infolist(), size) is not None or any(
                judge(archive, member, depth) for member in archive.infolist() if not member.is_dir()
            )
    except (zipfile.BadZipFile, zlib.error, _Unreadable, ValueError, EOFError, RuntimeError):
        return True  # an archive that cannot be inspected


def _member_can_execute(archive: zipfile.ZipFile, member: zipfile.ZipInfo, depth: int) -> bool:
    if not _has_data_suffix(member.filename):
        return True
    path, size = PurePosixPath(member.filename), member.file_size
    with archive.open(member) as content:
        small = size <= _MAX_BYTES
        return _can_execute(path, BytesIO(content.read()) if small else content, size, depth + 1)


def _part_can_execute(archive: zipfile.ZipFile, member: zipfile.ZipInfo, depth: int) -> bool:
    """Whether a part of a program can execute code: pickled samples and objects, or what no program of tensors holds."""
    path = PurePosixPath(member.filename)
    if path.name.startswith(_CUSTOM_OBJECTS):
        return True
    if path.suffix == _SAMPLES:
        return member.file_size > 0 and not _holds_tensors_only(_content(archive, member))
    if path.name.endswith(_TABLES):
        return _marks_pickles(_content(archive, member))
    return _member_can_execute(archive, member, depth)


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


_MOST_TIMES: Final = 8
_SLACK_BYTES: Final = 16 << 20
_METHODS: Final = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})


def open_archive(source: Path | IO[bytes]) -> zipfile.ZipFile:
    """Open an archive to read, if all its members together are at most eight times its size and 16 MiB.

    Raises: BadZipFile if they are larger, are packed in an unusual way, or there is no archive.
    """
    archive = zipfile.ZipFile(source)
    size = source.stat().st_size if isinstance(source, Path) else source.seek(0, SEEK_END)
    fault = _fault(archive.infolist(), size)
    if fault is not None:
        archive.close()
        raise zipfile.BadZipFile(f"{fault}: write the archive without compression")
    return archive


def _fault(members: Sequence[zipfile.ZipInfo], size: int) -> str | None:
    unpacked = sum(member.file_size for member in members)
    if unpacked > _MOST_TIMES * size + _SLACK_BYTES:
        return f"{size:,} bytes unpack to {unpacked:,}"
    unusual = [member.filename for member in members if member.compress_type not in _METHODS]
    return f"{unusual[0]} is packed in an unusual way" if unusual else None


_OPCODES: Final = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_MAX_OPCODES = 100_000
_MAX_NAME_BYTES, _MAX_LINE_BYTES = 1 << 10, 1 << 20
_TEXTS = {"STRING", "UNICODE", "PERSID"}  # the arguments up to a newline that may be long
_IMPORTS = {"GLOBAL", "INST", "STACK_GLOBAL"}
_BY_NUMBER = {
    "EXT1",
    "EXT2",
    "EXT4",
}  # of a table in the process that unpickles, which is empty unless its program fills it
_CALLS = {"REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"}
_DOTTED = re.compile(rb"[^\W\d][\w.]*|[\w.]*[\x80-\xff][\w.\x80-\xff]*")
_LENGTH_BYTES = {  # of the length that stands before an argument
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}


class _NotAPickle(Exception):  # noqa: N818 - a signal inside this module
    """No unpickler would go on here."""


class _TooLong(Exception):  # noqa: N818 - a signal inside this module
    """The pickle is too long to be walked to its end."""


def executes_code(file: IO[bytes], size: int) -> bool:
    """Whether unpickling the file from its position imports a name, and calls it or ends; of several pickles any counts.

    size: of the whole file, in bytes.
    """
    walk = _Walk(_Reader(file, size))
    try:
        while walk.next_pickle():
            pass
    except _NotAPickle:
        return walk.called
    except _TooLong:
        return True
    return walk.imported


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reader of a file's opcodes, which passes over arguments without keeping them."""

    file: IO[bytes]
    size: int

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        if len(data) < size:
            raise _NotAPickle
        return data

    def line(self, limit: int) -> bytes:
        """Read to the end of the line. Raises: _NotAPickle where the file ends before; _TooLong."""
        data = self.file.readline(limit)
        if not data.endswith(b"\n"):
            raise _TooLong if len(data) == limit else _NotAPickle
        return data

    def skip(self, size: int) -> None:
        """Pass over an argument without reading it. Raises: _NotAPickle where the file ends before."""
        if size > self.size - self.file.tell():
            raise _NotAPickle
        self.file.seek(size, SEEK_CUR)

    def opcode(self) -> pickletools.OpcodeInfo | None:
        """Read the next opcode; None at the end of the file."""
        code = self.file.read(1)
        if not code:
            return None
        if code[0] not in _OPCODES:
            raise _NotAPickle
        return _OPCODES[code[0]]

    def skip_argument(self, opcode: pickletools.OpcodeInfo) -> None:
        """Skip an argument without its value, which parsers disagree on. Raises: _NotAPickle for a name that cannot be one."""
        argument = opcode.arg
        if argument is None:
            return
        if opcode.name in {"GLOBAL", "INST"}:
            if not all(_DOTTED.fullmatch(self._short_line().rstrip(b"\r\n")) for _ in range(2)):
                raise _NotAPickle
        elif argument.n == pickletools.UP_TO_NEWLINE:
            self.line(_MAX_LINE_BYTES) if opcode.name in _TEXTS else self._short_line()
        elif argument.n >= 0:
            self.skip(argument.n)
        else:
            self.skip(int.from_bytes(self.read(_LENGTH_BYTES[argument.n]), "little"))

    def _short_line(self) -> bytes:
        try:
            return self.line(_MAX_NAME_BYTES)
        except _TooLong as error:
            raise _NotAPickle from error  # no unpickler reads a name or a number of that length


@dataclass(slots=True)
class _Walk:
    """Walk over the pickles of a file, one after the other.

    imported, called: what was met so far. depth: of the unpickler's stack; marks: the places of its marks, the last on top.
    """

    reader: _Reader
    imported: bool = False
    called: bool = False
    opcodes: int = 0
    depth: int = 0
    marks: list[int] = field(default_factory=list)

    def next_pickle(self) -> bool:
        """Walk to the end of the next pickle; False at the end of the file. Raises: _NotAPickle; _TooLong."""
        self.depth, self.marks = 0, []
        for opcode in self._opcodes():
            if opcode.name in _BY_NUMBER:
                raise _NotAPickle
            self._apply(opcode)
            self.imported |= opcode.name in _IMPORTS
            self.called |= self.imported and opcode.name in _CALLS
            if self.called:
                raise _NotAPickle  # whatever follows, this much is run
            if opcode.name == "STOP":
                return True
        if self.depth:
            raise _NotAPickle  # it was cut off
        return False

    def _opcodes(self) -> Iterator[pickletools.OpcodeInfo]:
        while (opcode := self.reader.opcode()) is not None:
            self.opcodes += 1
            if self.opcodes > _MAX_OPCODES:
                raise _TooLong
            self.reader.skip_argument(opcode)
            yield opcode

    def _apply(self, opcode: pickletools.OpcodeInfo) -> None:
        """Take from the stack and push on it as the opcode does. Raises: _NotAPickle if it has too few, or no mark."""
        before = opcode.stack_before
        taken = len(before)
        if pickletools.markobject in before:
            if not self.marks:
                raise _NotAPickle
            self.depth, taken = self.marks.pop(), before.index(pickletools.markobject)
        if self.depth < taken:
            raise _NotAPickle
        self.depth -= taken
        while self.marks and self.marks[-1] >= self.depth:
            self.marks.pop()
        for pushed in opcode.stack_after:
            if pushed is pickletools.markobject:
                self.marks.append(self.depth)
            self.depth += 1
