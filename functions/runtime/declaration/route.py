"""Address of a resource that a function is for, such as `POST /models/{model}/promote`, which answers with what it returns."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from toque.functions.runtime.errors import DeclarationError

_ROUTE = re.compile(r"(GET|POST|PUT|PATCH|DELETE) ((?:/[a-z-]+|/\{[a-z_]+\})+)(?: (2\d\d))?")
_PARAMETER = re.compile(r"\{([a-z_]+)\}")


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
