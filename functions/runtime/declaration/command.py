"""Words by which a command line calls a function, the view in which it shows the result, and the address of a resource.

A command is written as its user types it: `"rollout end MODEL ACTION"` takes two arguments by position, and all others
of the function by flags; `"rollout abort MODEL action=roll_back"` is the same function with an argument that stands.
A route such as `POST /models/{model}/promote` calls a function as a resource, which answers with what the function returns.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from toque.functions.runtime.errors import DeclarationError

_WORD = re.compile(r"[a-z][a-z0-9-]*")
_PLACE = re.compile(r"[A-Z][A-Z0-9_]*")
_MOST_WORDS = 3
_ROUTE = re.compile(r"(GET|POST|PUT|PATCH|DELETE) ((?:/[a-z-]+|/\{[a-z_]+\})+)(?: (2\d\d))?")
_PARAMETER = re.compile(r"\{([a-z_]+)\}")
_FORM = re.compile(r": [^|]*? as ([^|]+?)(?= or | \| |$)")
FORMS = ("count", "pairs", "words", "json", "age")
"""Ways to write a value of a view: number of members, name=value, words for underscores, JSON, a time of so many seconds."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command: its words, the arguments that it takes by position, and those whose value stands."""

    words: tuple[str, ...]
    positional: tuple[str, ...]
    fixed: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str, *, function: str, arguments: Collection[str]) -> Command:
        """Read a command as its user types it. Raises: DeclarationError for an argument that the function has not."""
        parts = text.split()
        words = tuple(part for part in parts if _WORD.fullmatch(part))
        positional = tuple(part.lower() for part in parts if _PLACE.fullmatch(part))
        fixed = tuple(
            (name, value) for name, equals, value in (part.partition("=") for part in parts) if equals
        )
        if len(words) + len(positional) + len(fixed) != len(parts) or not 1 <= len(words) <= _MOST_WORDS:
            raise DeclarationError(
                f"{function}: command={text!r} is not one to three words in lower case, then ARGUMENTS in capitals and "
                "argument=value"
            )
        if unknown := sorted({*positional, *dict(fixed)} - set(arguments)):
            raise DeclarationError(
                f"{function}: command={text!r} names the arguments {unknown}, which it has not; there are "
                f"{', '.join(arguments) or 'none'}"
            )
        return cls(words, positional, fixed)


@dataclass(frozen=True, slots=True)
class View:
    """How a result is shown by the command line; without one, objects are shown by their fields.

    columns: headings of a table with the key of each, as in "version | raised: raised_at"; keys lead into inner objects
        by dots, end with ? where they may be missing, and may say how the value is written: "reasons: skipped as pairs",
        by `FORMS`, or "share: share as {:.1%} or none" by a format. wide: further ones, shown on request. texts: headings of
        free text, which may be shortened.
    rows: where in the result the rows of the table are, by dots; the result itself unless given.
    facts: headings and keys of what is shown once, before the rows or alone.
    newest: key of the time by which the rows are ordered, the newest first.
    empty: sentence for a table without rows; a part in brackets, as in "[ of {kind}]", stands where that is given.
    text: sentence instead of a table. Both may name arguments and fields of the result in braces; `{result}` is the result.
    failure: fields of the result, one of which that is neither empty nor 0 makes the exit code 1; with a sentence after the
        field, as in "damaged: {model} is damaged", that is said in place of all else.
    page: path of the console's page that shows more, as in "monitors/{model}".
    """

    columns: str = ""
    wide: str = ""
    texts: str = ""
    rows: str = ""
    facts: str = ""
    newest: str = ""
    empty: str = ""
    text: str = ""
    failure: str = ""
    page: str = ""

    def __post_init__(self) -> None:
        forms = [form for part in (self.columns, self.wide, self.facts) for form in _FORM.findall(part)]
        if unknown := [form for form in forms if form not in FORMS and "{" not in form]:
            raise DeclarationError(
                f"view: {unknown} is no way to write a value; there are {', '.join(FORMS)}, and formats such as {{:.1%}}"
            )


@dataclass(frozen=True, slots=True)
class Route:
    """Method and path by which a function is called as a resource, and the status of its answer.

    Arguments that the path names are read from it; the others are fields of the JSON body, or of the query of GET and DELETE.
    """

    method: str
    path: str
    status: int = 200

    @classmethod
    def parse(cls, text: str, *, function: str, arguments: Collection[str]) -> Route:
        """Read a route such as "POST /runs/{run}/register 201". Raises: DeclarationError."""
        match = _ROUTE.fullmatch(text)
        if match is None:
            raise DeclarationError(
                f"{function}: route={text!r} is not a method and a path, as in 'POST /models/{{model}}/promote' or "
                "'POST /tokens 201'"
            )
        if unknown := sorted({*_PARAMETER.findall(text)} - {*arguments}):
            raise DeclarationError(
                f"{function}: route={text!r} names the arguments {unknown}, which it has not; there are "
                f"{', '.join(arguments) or 'none'}"
            )
        return cls(match[1], match[2], int(match[3] or 200))

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the arguments in the path."""
        return tuple(_PARAMETER.findall(self.path))

    @property
    def has_body(self) -> bool:
        """Whether arguments that the path does not name come in the body."""
        return self.method not in {"GET", "DELETE"}

    def __str__(self) -> str:
        return f"{self.method} {self.path}"
