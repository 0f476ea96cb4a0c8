"""Identity of a formula's code as definitions record it: a digest of its text and of all that it reads."""

from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from toque.featurestore.errors import InvalidDefinition
from toque.registry.code_digest import formula_digest
from toque.registry.errors import InvalidInput

_READ = "+2."
_digests: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # as they were when a process first asked


def code_digest(transform: Callable[..., Any]) -> str:
    """Hash a function: `sha256:TEXT+2.READ`, its source text, and all that it reads beside it.

    A value that cannot be digested counts by its type, which is logged. Raises: InvalidDefinition if Python cannot find the text.
    """
    with suppress(KeyError, TypeError):  # of a value that cannot be in a dictionary
        return _digests[transform]
    try:
        text, read = formula_digest(transform)
    except InvalidInput as error:
        raise InvalidDefinition(str(error)) from error
    digest = f"sha256:{text}{_READ}{read[:32]}"
    with suppress(TypeError):
        _digests[transform] = digest
    return digest


def same_code(recorded: str, now: str) -> bool:
    """Whether a recorded digest is of this code; one of a form of before counts by its text alone."""
    return as_recorded(now, [recorded]) == recorded


def as_recorded(now: str, recorded: Collection[str]) -> str:
    """Return the recorded digest of the same text in a form of before, as in version 0.1; else the digest of now."""
    text = now.partition("+")[0]
    older = (digest for digest in recorded if _READ not in digest and digest.partition("+")[0] == text)
    return next(older, now)
