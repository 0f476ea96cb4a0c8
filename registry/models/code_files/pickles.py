"""Detection of pickles that can execute code, of any protocol and by content: protocols 0 and 1 have no header.

The opcodes are walked as the unpickler would, with the depth of its stack and without the values: texts, tables and raw numbers
meet an unknown opcode or an empty stack within a few bytes, where an unpickler fails too. What goes on for too long to be
walked to its end counts as code.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import SEEK_CUR
from typing import IO, Final

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
