"""Environment of an engine: where programs and devices are, and nothing of the platform's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["engine_environment"]

_PASSED: Final = frozenset({"PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "TZ"})
_PASSED_BEGINNINGS: Final = ("CUDA_", "NVIDIA_", "VLLM_", "OMP_", "GGML_", "LLAMA_")


def engine_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Choose what an engine may see of the environment: where programs and devices are, and nothing of the platform's."""
    return {
        name: value
        for name, value in environment.items()
        if name in _PASSED or name.startswith(_PASSED_BEGINNINGS)
    }
