"""Functions that a caller may see and call by HTTP: declared so, and belonging to the workspace."""

from __future__ import annotations

from toque.functions.runtime import catalog
from toque.functions.runtime.context import Context
from toque.functions.runtime.errors import UnknownFunction
from toque.functions.runtime.run.declared import DeclaredFunction
from toque.ray_apps.admission import Admitted
from toque.registry import Role


def list_http(context: Context) -> list[DeclaredFunction]:
    """List the functions that are callable by HTTP in the context's workspace, by name."""
    return [each for each in catalog.all_functions() if is_visible(each, context)]


def is_visible(function: DeclaredFunction, context: Context) -> bool:
    """Whether a function is callable by HTTP in the context's workspace; its role is another question."""
    return function.http and context.sees(function.reference)


def get_http(name: str, context: Context, admitted: Admitted) -> DeclaredFunction:
    """Return the function `name`, importing nothing.

    Raises: UnknownFunction, also for one that is not callable by HTTP: those who run functions are told the remedy.
    """
    found = catalog.find_declared(name, where=lambda each: is_visible(each, context))
    if found is not None:
        return found
    known = ", ".join(dict.fromkeys(each.name for each in list_http(context))) or "none"
    remedy = "is its module imported (TOQUE_PROJECT)?"
    hidden = catalog.find_declared(name, where=lambda each: context.sees(each.reference))
    if hidden is not None and admitted.may(Role.operator):
        remedy = "it is declared for Python callers only; @function(http=True) opens it"
    raise UnknownFunction(f"no function {name!r} is callable by HTTP: {remedy} Callable are: {known}")
