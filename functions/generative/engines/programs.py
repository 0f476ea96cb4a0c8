"""Engines by their names, and where their programs are."""

from __future__ import annotations

import shutil
import sys

from toque.functions.generative.engines.engine import Engine
from toque.functions.generative.engines.llama_cpp import LlamaCpp
from toque.functions.generative.engines.vllm import Vllm

__all__ = ["engine_of"]


def engine_of(name: str, program: str | None = None) -> Engine:
    """Make an engine by its name. program: Python of llama.cpp's environment, or the command `vllm`; None: where it is found.

    Raises: ValueError for another name, or if no `vllm` is on the path.
    """
    if name == LlamaCpp.name:
        return LlamaCpp(program or sys.executable)
    if name != Vllm.name:
        raise ValueError(f"engine={name!r}: there are {LlamaCpp.name!r} and {Vllm.name!r}")
    found = program or shutil.which("vllm")
    if found is None:
        raise ValueError("engine='vllm': no command `vllm` is on the path; say where it is")
    return Vllm(found)
