"""Projects of tests: a module that declares one model, found by its name as a user's is."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType

from toque.functions import Context, use_context
from toque.functions.project import ModelDefinition


@contextmanager
def project_of(monkeypatch, context: Context, definition: ModelDefinition) -> Iterator[Context]:
    """Work in a project of one model."""
    module = ModuleType("project_of_a_test")
    module.FEATURES, module.MODELS = [], [definition]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with use_context(replace(context, project=module.__name__)) as within:
        yield within
