"""Tables that `toque train` would refuse are refused by `toque init`, with column, value and remedy."""

from __future__ import annotations

import math

import polars as pl
import pytest

from toque.ray_apps.new_project.columns import MISSING, summarize
from toque.ray_apps.new_project.roles import Roles, Wishes, roles_of
from toque.ray_apps.new_project.source import InitError

ROWS = 60


def roles(label: list[object], **columns: list[object]) -> Roles:
    table = pl.DataFrame({"x": list(range(ROWS)), **columns, "price": label}).lazy()
    return roles_of(table, summarize(table), Wishes(label="price"), MISSING)


@pytest.mark.parametrize("value", [math.inf, -math.inf, "inf", "-Infinity"])
@pytest.mark.parametrize("place", [0, ROWS - 1])
def test_an_infinite_label_is_refused(value: object, place: int) -> None:
    label: list[object] = [number + 0.5 for number in range(ROWS)]
    label[place] = value
    written = [str(each) for each in label] if isinstance(value, str) else label
    with pytest.raises(InitError, match=r"--label price: 1 values are infinite.*leave these rows out"):
        roles(written)


def test_a_large_label_and_an_infinite_feature_are_no_infinite_label() -> None:
    label: list[object] = [number + 0.5 for number in range(ROWS - 1)]
    assert roles([*label, 1.7e308], y2=[math.inf] * ROWS).outcome == "number"


@pytest.mark.parametrize("values", [list(range(ROWS)), [f"t{number}" for number in range(ROWS)]])
def test_a_column_with_the_name_of_the_time_that_is_none_is_refused(values: list[object]) -> None:
    label: list[object] = [number + 0.5 for number in range(ROWS)]
    with pytest.raises(InitError, match=r"column event_timestamp is of kind \w+.*rename it"):
        roles(label, event_timestamp=values)
    times = [f"2024-05-01T00:00:{number:02}Z" for number in range(ROWS)]
    assert roles(label, event_timestamp=list(times)).time == "event_timestamp"
