"""What a sandbox and the process that it asks say to each other, one JSON document a line."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from toque.functions.model_formats.sandbox.limits import SandboxLimits
from toque.registry.models import Signature


class LoadRequest(BaseModel):
    """Load the files in a folder within limits.

    modules: imported first, outside the limits. trusted_types: classes that a file of skops may name.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    folder: Path
    modules: tuple[str, ...]
    signature: Signature
    limits: SandboxLimits
    trusted_types: tuple[str, ...] = ()


class Verdict(BaseModel):
    """The end of a load within limits. reason: why the files cannot be served, or None; held: limits that the kernel enforced."""

    model_config = ConfigDict(frozen=True)

    reason: str | None = None
    held: tuple[str, ...] = ()


def import_all(modules: Iterable[str]) -> None:
    """Import modules; one that is absent or broken is reported by the load that needs it."""
    for module in modules:
        with suppress(Exception):  # a library without its shared objects raises what it likes
            importlib.import_module(module)
