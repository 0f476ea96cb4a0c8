"""Charts: axes that no value can leave, and series of a single point."""

import re
from datetime import UTC, datetime

import pytest

from toque.functions.pages.charts import Point, Series, draw_lines

AT = datetime(2026, 11, 30, 23, 59, tzinfo=UTC)


def drawn(*points: Point) -> str:
    return str(draw_lines([Series("rate", points)], label="requests"))


def ticks(chart: str) -> list[float]:
    texts = re.findall(r'text-anchor="end">([^<]+)<', chart)
    return [float(text.replace("\u202f", "").replace("−", "-")) for text in texts]


@pytest.mark.parametrize(
    "values", [[0.0, 0.0], [0.0], [0.0, 1e-9], [0.0, 5e6], [3.0, 3.0], [1e-300, 0.0], [0.7]]
)
def test_an_axis_of_values_that_are_never_negative_does_not_go_below_zero(values: list[float]) -> None:
    found = ticks(drawn(*(Point(at, value) for at, value in enumerate(values))))
    assert found
    assert min(found) >= 0.0


def test_an_axis_of_values_of_both_signs_goes_below_zero() -> None:
    assert min(ticks(drawn(Point(0, -1.0), Point(1, 1.0)))) < 0


@pytest.mark.parametrize("at", [AT, 0, 7.0, 1e9])
def test_a_single_point_is_seen(at: datetime | float) -> None:
    chart = drawn(Point(at, 0.5))
    (x,) = re.findall(r'<circle class="point[^"]*" cx="([0-9.]+)"', chart)
    assert 300 < float(x) < 600  # in the middle, not on the axis
    assert len(drawn(Point(0, 0.5), Point(1, 0.5)).split("<circle")) == 1  # a line is seen without


def test_the_moments_below_a_single_point_differ() -> None:
    times = re.findall(r'data-time="([^"]+)"', drawn(Point(AT, 0.5)))
    assert len({time[:16] for time in times}) == len(times) > 1
