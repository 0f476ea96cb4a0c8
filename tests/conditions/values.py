"""Values that a column holds in life and seldom in a test: huge, tiny, infinite, absent, whole beyond 2^53, empty and foreign texts."""

from __future__ import annotations

import math
import sys

import pytest
from hypothesis import strategies as st

DBL_MAX = sys.float_info.max
DENORMAL = 5e-324
LARGEST_WHOLE = 2**53
"""Greatest whole number up to which a float64 holds each."""

EXTREMES = {
    "DBL_MAX": DBL_MAX,
    "-DBL_MAX": -DBL_MAX,
    "1e155": 1e155,  # its square is no float64
    "-1e100": -1e100,
    "denormal": DENORMAL,
    "1e-300": 1e-300,
    "-0.0": -0.0,
    "+inf": float("inf"),
    "-inf": float("-inf"),
    "NaN": float("nan"),
    "null": None,
}
"""Numbers beside which the results of others must stay as they are, by name."""

RECORDED = {
    "1e155": 1e155,
    "1e160": 1e160,
    "1e308": 1e308,
    "-DBL_MAX": -DBL_MAX,
    "+inf": float("inf"),
    "-inf": float("-inf"),
    "NaN": float("nan"),
    "-0.0": -0.0,
    "2^53+1": float(2**53 + 1),
}
"""Values that a log may hold of a label, an outcome or an answer, by name."""

WHOLE = {
    "2^53+1": LARGEST_WHOLE + 1,
    "-2^53-1": -LARGEST_WHOLE - 1,
    "max of Int64": 2**63 - 1,
    "min of Int64": -(2**63),
    "null": None,
}
"""Whole numbers of Int64 that float64 does not hold, by name."""

LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127
ROUNDS_TO_LARGEST_FLOAT32 = math.nextafter((2 - 2**-24) * 2.0**127, 0)
"""Greatest float64 that rounds to a float32; the next one rounds to infinity."""
EDGES = {
    "greatest of Float32": ("Float32", ROUNDS_TO_LARGEST_FLOAT32, 3.4028236e38),
    "least of Float32": ("Float32", -LARGEST_FLOAT32, -1e39),
    "greatest of Int32": ("Int32", 2**31 - 1, 2**31),
    "least of Int32": ("Int32", -(2**31), -(2**31) - 1),
    "greatest of Int64": ("Int64", 2**63 - 1, 2**63),
    "least of Int64": ("Int64", -(2**63), -(2**63) - 1),
}
"""Type, the last value that it holds, and the next one, which it does not, by name."""

TEXTS = {
    "empty": "",
    "blank": " ",
    "huge": "x" * 1_000_000,
    "non-ASCII": "Zoë Ångström 東京 🛫",
    "right to left": "مرحبا",
    "combining": "e\N{COMBINING ACUTE ACCENT}",
    "separators": "a|b:c/d%7C\n\t\x00",
}
"""Texts by what is unusual about them."""

any_extreme = pytest.mark.parametrize("extreme", EXTREMES.values(), ids=EXTREMES.keys())
any_recorded = pytest.mark.parametrize("recorded", RECORDED.values(), ids=RECORDED.keys())
any_edge = pytest.mark.parametrize(("dtype", "held_value", "beyond"), EDGES.values(), ids=EDGES.keys())
any_whole = pytest.mark.parametrize("whole", WHOLE.values(), ids=WHOLE.keys())

numbers = st.one_of(
    st.sampled_from([value for value in EXTREMES.values() if value is not None]),
    st.floats(-1e3, 1e3),
    st.floats(allow_nan=False, allow_infinity=False),
    st.none(),
)
"""Any float64, or none, those of `EXTREMES` often."""
whole_numbers = st.one_of(
    st.sampled_from([value for value in WHOLE.values() if value is not None]),
    st.integers(-1_000, 1_000),
    st.integers(-(2**63), 2**63 - 1),
)
"""Any Int64, those of `WHOLE` often."""
texts = st.one_of(st.sampled_from(list(TEXTS.values())), st.text(max_size=20))
"""Any text, those of `TEXTS` often."""
