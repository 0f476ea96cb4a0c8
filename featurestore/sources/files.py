"""Readers of files by a pattern: Parquet, each read once, and CSV, which may also grow.

A pattern is a path or an `s3://` url with wildcards (`*`, `?`, `[…]`, and `**/` for any folders). A file is known by its size
and time; one that changed after it was read is left out, because its rows would be stored twice or not at all.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyarrow import csv, fs

from toque.featurestore.definitions.batch_source import Piece, Position, Secrets, TimeRange
from toque.featurestore.errors import InvalidDefinition, UnreadableSource
from toque.featurestore.rows import gathered

if TYPE_CHECKING:
    import pyarrow.parquet as pq

BATCH_ROWS = 131_072
_GATHERED_ROWS = BATCH_ROWS // 2 + 1  # of small row groups that are put together
_BLOCK_BYTES = 8 << 20
_LONGEST_LINE = 64 << 20
_TAIL_BYTES = 4096
SETTLED_S = 60.0
"""Seconds for which a file in a folder must have stayed as it is for its last line, without an end, to be whole."""
_LINE_ENDS = re.compile(rb"\r\n|\n|\r")
_WILDCARDS = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class ParquetFiles:
    """Parquet files by a pattern, each read once.

    endpoint, region: of a bucket; by default those of the process's AWS settings, whose chain of credentials opens it.
    Raises: InvalidDefinition.
    """

    pattern: str
    endpoint: str = ""
    region: str = ""

    def __post_init__(self) -> None:
        _check_pattern(self.pattern)

    def describe(self) -> dict[str, Any]:
        """Describe the reader as JSON."""
        return {
            "type": "parquet",
            "pattern": self.pattern,
            "endpoint": self.endpoint,
            "region": self.region,
        }

    def pieces(
        self, after: Position, columns: Sequence[str], secrets: Secrets, within: TimeRange | None = None
    ) -> Iterator[Piece]:
        """Find the files that were not read yet, by name; one that changed since cannot be read. Raises: UnreadableSource."""
        del secrets  # files have none
        system, found = _listed(self)
        for each in found:
            known = after.get(each.path)
            if known is None:
                position = {each.path: _stamp(each)}
                read = partial(_parquet, system, each.path, list(columns), within)
                yield Piece(each.path, position, partial(_unchanged, system, each, read))
            elif known[:2] != _stamp(each):
                yield _unreadable(each, _changed(each, known))


@dataclass(frozen=True, slots=True)
class CsvFiles:
    """CSV files by a pattern, with a line of names first; lines that are added at the end of one are read by the next load.

    null: texts that stand for no value. endpoint, region: as of `ParquetFiles`. A value must not hold the end of a line.
    Raises: InvalidDefinition.
    """

    pattern: str
    delimiter: str = ","
    null: Sequence[str] = ("", "NA", "NULL", "null")
    encoding: str = "utf8"
    endpoint: str = ""
    region: str = ""

    def __post_init__(self) -> None:
        _check_pattern(self.pattern)
        object.__setattr__(self, "null", tuple(self.null))
        if len(self.delimiter) != 1:
            raise InvalidDefinition(f"CsvFiles: delimiter is one character, got {self.delimiter!r}")

    def describe(self) -> dict[str, Any]:
        """Describe the reader as JSON."""
        return {
            "type": "csv",
            "pattern": self.pattern,
            "delimiter": self.delimiter,
            "null": list(self.null),
            "encoding": self.encoding,
            "endpoint": self.endpoint,
            "region": self.region,
        }

    def pieces(
        self, after: Position, columns: Sequence[str], secrets: Secrets, within: TimeRange | None = None
    ) -> Iterator[Piece]:
        """Find files and ends of files that were not read yet; one that changed otherwise cannot be read. Raises: UnreadableSource."""
        del secrets, within  # as above; a text says nothing of its rows' times
        system, found = _listed(self)
        for each in found:
            try:
                piece = self._piece(system, each, after.get(each.path), columns)
            except (OSError, pa.ArrowException) as error:  # it went since it was listed
                piece = _unreadable(
                    each, f"file {each.path!r} cannot be read: {error}; the next load tries again"
                )
            if piece is not None:
                yield piece

    def _piece(
        self, system: fs.FileSystem, file: _Listed, known: Sequence[Any] | None, columns: Sequence[str]
    ) -> Piece | None:
        """Find what is new in a file; None if nothing is."""
        if known is not None and [*known[:2], known[2]] == [*_stamp(file), file.size]:
            return None
        start = 0 if known is None else int(known[2])
        end = _last_line(system, file.path, min(start, file.size), file.size)
        if end < file.size and self._is_whole(file):
            end = file.size
        digests = _digests(system, file.path, (start, end)) if start <= end else []
        if known is not None and not (digests and _only_grew(system, file, known, digests[0])):
            return _unreadable(file, _changed(file, known))
        waiting = "" if end == file.size else _unended(file, end)
        if end > start:
            torn: list[str] = []
            read = partial(self._lines, system, file.path, (start, end), list(columns), torn)
            return Piece(
                file.path, {file.path: [*_stamp(file), end, digests[1]]}, read, torn, waiting=waiting
            )
        return Piece(file.path, {}, lambda: iter(()), waiting=waiting) if waiting else None

    def _is_whole(self, file: _Listed) -> bool:
        """Whether nobody still writes a file: one in a bucket comes as a whole, and another rests when it is done."""
        return self.pattern.startswith("s3://") or abs(time.time() - file.time_ns / 1e9) >= SETTLED_S

    def _lines(
        self,
        system: fs.FileSystem,
        path: str,
        between: tuple[int, int],
        columns: list[str],
        torn: list[str],
    ) -> Iterator[pa.Table]:
        """Read whole lines of a part of a file, every column as text. torn: takes lines with more or fewer values than names."""

        def keep(row: csv.InvalidRow) -> str:
            torn.append(row.text)
            return "skip"

        start, end = between
        opened: list[bytes] = []
        try:
            with system.open_input_file(path) as file:
                names = _header(file, self.delimiter, self.encoding)
                _require(path, columns, names)
                begin = start or _after_header(file)
                if begin >= end:
                    return
                reader = csv.open_csv(
                    pa.PythonFile(_Lines(file, (begin, end), self.delimiter, opened), mode="r"),
                    csv.ReadOptions(column_names=names, block_size=_BLOCK_BYTES, encoding=self.encoding),
                    csv.ParseOptions(delimiter=self.delimiter, invalid_row_handler=keep),
                    csv.ConvertOptions(
                        include_columns=columns,
                        column_types=dict.fromkeys(columns, pa.string()),
                        null_values=list(self.null),
                        strings_can_be_null=True,
                    ),
                )
                for batch in reader:
                    yield pa.Table.from_batches([batch])
                torn.extend(line.decode(self.encoding, errors="replace") for line in opened)
        except (pa.ArrowException, OSError, UnicodeError) as error:
            raise UnreadableSource(f"file {path!r} cannot be read as {self.encoding} CSV: {error}") from error


class _Lines:
    """Lines of a part of an open file as a file of its own, but for those with a value whose quote is open at their end.

    Such a value would take in the lines that follow. torn: takes these lines.
    """

    def __init__(
        self, file: pa.NativeFile, between: tuple[int, int], delimiter: str, torn: list[bytes]
    ) -> None:
        self._file, (self._at, self._end), self._torn, self.closed = file, between, torn, False
        self._delimiter = delimiter.encode()
        other = re.escape(self._delimiter)
        value = rb'(?:"(?:[^"]|"")*"(?!")[^%b]*|[^"%b][^%b]*|)' % (other, other, other)
        self._closed_line = re.compile(value + rb"(?:%b" % other + value + rb")*", re.DOTALL)
        self._ready, self._rest = b"", b""

    def read(self, size: int = -1) -> bytes:
        while not self._ready and (self._at < self._end or self._rest):
            data = bytes(self._file.read_at(min(_BLOCK_BYTES, self._end - self._at), self._at))
            self._at = self._at + len(data) if data else self._end
            data = self._rest + data
            cut = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
            cut = len(data) if self._at >= self._end or len(data) > _LONGEST_LINE else cut
            self._ready, self._rest = self._closed_lines(data[:cut]), data[cut:]
        data, self._ready = (
            self._ready[: size if size >= 0 else None],
            self._ready[size:] if size >= 0 else b"",
        )
        return data

    def _closed_lines(self, data: bytes) -> bytes:
        if b'"' not in data:
            return data
        codes = np.frombuffer(data, np.uint8)
        quotes, ends = np.flatnonzero(codes == ord('"')), np.flatnonzero(np.isin(codes, [10, 13]))
        line = np.searchsorted(ends, quotes)
        begins = np.flatnonzero(np.diff(line, prepend=-1))  # the first quote of each line
        turn = np.arange(len(quotes)) - np.repeat(begins, np.diff(begins, append=len(quotes)))
        before = np.where(quotes > 0, codes[quotes - 1], 10)
        within = (turn % 2 == 0) & ~np.isin(before, [10, 13, ord('"'), self._delimiter[0]])
        odd = line[begins][np.diff(begins, append=len(quotes)) % 2 == 1]
        parts, at = list[bytes](), 0
        for number in np.union1d(odd, line[within]).tolist():
            begin, end = (
                int(ends[number - 1]) + 1 if number else 0,
                int(ends[number]) if number < len(ends) else len(data),
            )
            if not self._closed_line.fullmatch(data, begin, end):
                self._torn.append(data[begin:end])
                parts, at = [*parts, data[at:begin]], end
        return b"".join([*parts, data[at:]]) if parts else data

    def close(self) -> None:
        self.closed = True


@dataclass(frozen=True, slots=True)
class _Listed:
    path: str
    size: int
    time_ns: int


def _check_pattern(pattern: str) -> None:
    if not pattern or (":" in pattern.partition("/")[0] and not pattern.startswith("s3://")):
        raise InvalidDefinition(f"pattern {pattern!r}: give a path or an s3:// url, with wildcards")


def _listed(reader: ParquetFiles | CsvFiles) -> tuple[fs.FileSystem, list[_Listed]]:
    """List the files that a pattern names, in order of their names. Raises: UnreadableSource."""
    pattern = reader.pattern
    path = pattern.removeprefix("s3://")
    fixed = _WILDCARDS.split(path, maxsplit=1)[0]
    try:
        system = _system(reader)
        if fixed == path:
            infos = system.get_file_info([path])
            if infos[0].type == fs.FileType.NotFound:
                raise FileNotFoundError("there is no such file")
        else:
            infos = system.get_file_info(fs.FileSelector(fixed.rpartition("/")[0] or ".", recursive=True))
    except (OSError, pa.ArrowException) as error:
        raise UnreadableSource(f"{pattern!r} cannot be listed: {error}") from error
    wanted = _regex(path)
    found = [
        _Listed(info.path, info.size or 0, info.mtime_ns or 0)
        for info in infos
        if info.type == fs.FileType.File and wanted.fullmatch(info.path)
    ]
    return system, sorted(found, key=lambda each: each.path)


def _system(reader: ParquetFiles | CsvFiles) -> fs.FileSystem:
    if not reader.pattern.startswith("s3://"):
        return fs.LocalFileSystem()
    given = {"endpoint_override": reader.endpoint, "region": reader.region}
    return fs.S3FileSystem(**{name: value for name, value in given.items() if value})


def _regex(path: str) -> re.Pattern[str]:
    """Translate a pattern: `*` stays within a folder, `**/` crosses any."""
    parts = re.split(r"(\*\*/|\*|\?|\[[^\]]*\])", path)
    known = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return re.compile(
        "".join(known.get(part, part if part.startswith("[") else re.escape(part)) for part in parts)
    )


def _stamp(file: _Listed) -> list[int]:
    return [file.size, file.time_ns]


def _changed(file: _Listed, known: Sequence[Any]) -> str:
    return (
        f"file {file.path!r} was {known[0]} bytes when it was read and is {file.size} now: what was read of it changed; "
        "write corrections to a new file and declare `unique`, or load the source anew under another name"
    )


def _unended(file: _Listed, end: int) -> str:
    return (
        f"the last {file.size - end} bytes of file {file.path!r} end no line, and the file changed less than {SETTLED_S:g} s ago: they "
        "are read once the line ends, or the file has rested that long"
    )


def _unreadable(file: _Listed, why: str) -> Piece:
    """Piece of a file that is left out, while the others are read."""

    def refuse() -> Iterator[pa.Table]:
        raise UnreadableSource(why)

    return Piece(file.path, {}, refuse)


def _unchanged(
    system: fs.FileSystem, file: _Listed, read: Callable[[], Iterator[pa.Table]]
) -> Iterator[pa.Table]:
    """Read a file that must be as it was listed: a copy that ends meanwhile is read by the next load."""
    yield from read()
    (now,) = system.get_file_info([file.path])
    if [now.size, now.mtime_ns] != _stamp(file):
        raise UnreadableSource(
            f"file {file.path!r} was {file.size} bytes when it was listed and is {now.size} now: it is still being written; the next "
            "load reads it"
        )


def _parquet(
    system: fs.FileSystem, path: str, columns: list[str], within: TimeRange | None
) -> Iterator[pa.Table]:
    import pyarrow.parquet as pq  # late: it brings the dataset machinery, which declarations do not need
    from pyarrow.dataset import ParquetFileFormat

    try:
        with system.open_input_file(path) as opened:
            file = pq.ParquetFile(opened)
            _require(path, columns, file.schema_arrow.names)
            condition = None if within is None else within.condition(file.schema_arrow)
            if condition is not None:  # leaves out row groups of other times
                fragment = ParquetFileFormat().make_fragment(path, filesystem=system)
                yield from gathered(fragment.to_batches(columns=columns, filter=condition), _GATHERED_ROWS)
                return
            yield from gathered(_by_row_group(file, columns), _GATHERED_ROWS)
    except (pa.ArrowException, OSError) as error:
        raise UnreadableSource(f"file {path!r} is not a whole Parquet file: {error}") from error


def _by_row_group(file: pq.ParquetFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Read one row group after the other: read together, large ones are held together."""
    for each in range(file.num_row_groups):
        yield from file.iter_batches(batch_size=BATCH_ROWS, columns=columns, row_groups=[each])


def _require(path: str, columns: Sequence[str], names: Sequence[str]) -> None:
    missing = [name for name in columns if name not in names]
    if missing:
        raise UnreadableSource(f"file {path!r} has no column {missing[0]!r}; it has {list(names)}")


def _only_grew(system: fs.FileSystem, file: _Listed, known: Sequence[Any], digest: str) -> bool:
    """Whether what was read of a file is as it was. digest: of that part now."""
    by_ends = len(known[3]) < len(digest)  # as recorded by 0.1: of the header and of what lies before the end
    if known[3] != (_digest_of_ends(system, file.path, known[2]) if by_ends else digest):
        return False
    with system.open_input_file(file.path) as opened:
        seam = bytes(opened.read_at(2, max(0, known[2] - 1)))
    # A line that was read without its end is whole if what came next is one.
    return not (
        known[2] > 0 and len(seam) > 1 and not any(seam[at : at + 1] in {b"\n", b"\r"} for at in (0, 1))
    )


def _digests(system: fs.FileSystem, path: str, ends: Sequence[int]) -> list[str]:
    """Digest what lies before each end, the least first, in one reading."""
    digest, at, digests = hashlib.sha256(), 0, list[str]()
    with system.open_input_file(path) as file:
        for end in ends:
            while at < end and (data := file.read_at(min(_BLOCK_BYTES, end - at), at)):
                digest.update(data)
                at += len(data)
            digests.append(digest.hexdigest())
    return digests


def _digest_of_ends(system: fs.FileSystem, path: str, end: int) -> str:
    with system.open_input_file(path) as file:
        first = file.read_at(min(_TAIL_BYTES, end), 0)
        last = file.read_at(min(_TAIL_BYTES, end), max(0, end - _TAIL_BYTES))
    return hashlib.sha256(bytes(first) + bytes(last)).hexdigest()[:32]


def _last_line(system: fs.FileSystem, path: str, start: int, size: int) -> int:
    """Find the end of the last whole line between two bytes; `start` if there is none."""
    with system.open_input_file(path) as file:
        end = size
        while end > start:
            begin = max(start, end - _BLOCK_BYTES)
            data = bytes(file.read_at(end - begin, begin))
            found = max(data.rfind(b"\n"), data.rfind(b"\r"))
            if found >= 0:
                return begin + found + 1
            end = begin
    return start


def _after_header(file: pa.NativeFile) -> int:
    return len(_first_line(file))


def _first_line(file: pa.NativeFile) -> bytes:
    data = bytes(file.read_at(1 << 20, 0))
    end = _LINE_ENDS.search(data)
    return data[: end.end()] if end else data


def _header(file: pa.NativeFile, delimiter: str, encoding: str) -> list[str]:
    import csv as standard  # late: only files with lines need it

    line = _first_line(file).decode(encoding).lstrip("\ufeff").rstrip("\r\n")
    return next(standard.reader([line], delimiter=delimiter), [])
