"""Identity of an on-demand view's code: where to import it from, and a digest of its text."""

import hashlib
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from toque.featurestore.errors import InvalidDefinition


def code_digest(transform: Callable[..., Any]) -> str:
    """Hash the source text of a function.

    Raises: InvalidDefinition if Python cannot find the text.
    """
    try:
        text = textwrap.dedent(inspect.getsource(transform))
    except (OSError, TypeError) as error:
        raise InvalidDefinition(
            f"the source of {transform!r} cannot be read; define it in a module"
        ) from error
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def code_reference(transform: Callable[..., Any]) -> str:
    """Reference `module:qualname` by which another process imports a function."""
    return f"{transform.__module__}:{getattr(transform, '__qualname__', type(transform).__qualname__)}"
