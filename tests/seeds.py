"""Seeds of tests by chance: a few are tried each time, and `make prove` tries the rest."""

from __future__ import annotations

from typing import Any

import pytest


def seeds(each_time: int, of: int) -> list[Any]:
    """Seeds from 0 on; all but the first `each_time` are proofs."""
    return [pytest.param(seed, marks=pytest.mark.proof if seed >= each_time else ()) for seed in range(of)]
