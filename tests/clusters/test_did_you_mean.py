"""The name that was probably meant."""

from __future__ import annotations

import pytest

from toque.clusters.did_you_mean import did_you_mean

KNOWN = ("champion", "Weather", "late", "latest")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("champoin", "champion"),  # two letters in the wrong order
        ("weathr", "Weather"),  # whatever the case
        ("lat", "late"),  # the first that begins so
        ("lates", "latest"),
        ("zebra", None),
        ("", None),
    ],
)
def test_the_nearest_name_is_suggested(name: str, meant: str | None) -> None:
    assert did_you_mean(name, KNOWN) == (f"did you mean {meant!r}? " if meant else "")
