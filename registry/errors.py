"""Errors of the registry: one class for each way a caller would act differently."""

# ruff: noqa: N818 - the names say what happened (`except NotFound`), as Starlette's and httpx's do

from __future__ import annotations

from typing import Any

from prometheus_client import Counter


class RegistryError(Exception):
    """Base of everything this package raises on purpose."""


class InvalidInput(RegistryError, ValueError):
    """The caller gave something that can never work: fix the argument named in the message."""


class NotFound(RegistryError):
    """Nothing is stored under this name, number or key."""


class AlreadyExists(RegistryError):
    """Something is stored under this name already, and `create` never overwrites."""


class Stale(RegistryError):
    """The caller's `expected` value is out of date; `actual` is the current one."""

    def __init__(self, what: str, expected: object, actual: object) -> None:
        self.what = what
        self.expected = expected
        self.actual = actual
        super().__init__(
            f"{what}: expected {expected!r} but it is {actual!r} now; read it again and decide on that"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.what, self.expected, self.actual)


class GivenUp(Stale):
    """The claim on a layer was revoked between being made and being used: claim again."""


class Refused(RegistryError):
    """A rule of the model (approval, gate, live alias, code in files) forbids the change; the message names the rule."""


DAMAGED = Counter(
    "toque_store_damaged", "Reads of the store that were refused, as bytes or a signature were wrong."
)


class Damaged(RegistryError):
    """Stored bytes are not what was recorded: never use them; restore the named object from a copy."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        DAMAGED.inc()  # here, as every reader refuses by this error


class NewerFormat(RegistryError):
    """A newer release wrote this, in a format that this one does not know: upgrade this process, nothing is damaged."""

    def __init__(self, what: str, found: object, known: object) -> None:
        self.what, self.found, self.known = what, found, known
        super().__init__(
            f"{what} has format {found}, and this release reads {known}: a newer one wrote it; upgrade this process "
            "(docs/upgrade.md)"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.what, self.found, self.known)


class Forbidden(RegistryError):
    """The store refused our credentials for this request."""


class Unavailable(RegistryError):
    """The store did not answer, so the outcome is unknown: the same call may be tried again."""
