"""Processors that round otherwise: the same program at other dispatch levels of the C library, NumPy, torch and BLAS."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass(frozen=True, slots=True)
class Processor:
    """A kind of processor, as libraries that choose their code by it see it. environment: variables that make them."""

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, program: str, *arguments: str) -> str:
        """Run Python code in a process of its own, seeing this processor; returns what it printed.

        Raises: AssertionError with what it said if it failed.
        """
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program, *arguments],
            env=os.environ | self.environment, capture_output=True, text=True, check=False, timeout=250,
        )  # fmt: skip
        assert done.returncode == 0, f"{self.name}: {done.stderr[-2_000:]}"
        return done.stdout


AS_IT_IS = Processor("as it is")
NO_AVX512 = Processor(
    "no AVX-512",
    {
        "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL X86_V4",
        "ATEN_CPU_CAPABILITY": "avx2",
        "OPENBLAS_CORETYPE": "Haswell",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX512VL",
    },
)
NO_FMA = Processor(
    "no FMA",
    {
        "NPY_DISABLE_CPU_FEATURES": f"{NO_AVX512.environment['NPY_DISABLE_CPU_FEATURES']} AVX2 FMA3 X86_V3",
        "ATEN_CPU_CAPABILITY": "default",
        "OPENBLAS_CORETYPE": "Prescott",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX512F,-AVX512VL",
    },
)
ALL = (AS_IT_IS, NO_AVX512, NO_FMA)
"""Where a machine has no such units, a level is what it has anyway."""


def parameters() -> list[Any]:
    """Parameters of a test: all processors."""
    return [pytest.param(processor, id=processor.name) for processor in ALL]
