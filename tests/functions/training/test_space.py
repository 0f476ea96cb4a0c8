import pytest

from functions.training.errors import TrainingDataError
from functions.training.params import TabularParams
from functions.training.space import DEFAULT_SPACE, Choice, Range, draw_points

BASE = TabularParams()


def test_the_first_point_is_the_given_setting_and_draws_follow_the_seed():
    points = draw_points(DEFAULT_SPACE, BASE, 6, 1)
    assert points[0] == BASE
    assert len(points) == 6
    assert points == draw_points(DEFAULT_SPACE, BASE, 6, 1)
    assert points != draw_points(DEFAULT_SPACE, BASE, 6, 2)


def test_draws_stay_within_their_bounds():
    space = {"lr": Range(low=1e-3, high=1e-2, log=True), "dropout": Range(low=0.1, high=0.2)}
    points = draw_points(space, BASE, 50, 0)[1:]
    assert all(1e-3 <= point.lr <= 1e-2 and 0.1 <= point.dropout <= 0.2 for point in points)
    assert len({point.lr for point in points}) == 49


@pytest.mark.parametrize("name", ["bins", "seed", "learning_rate"])
def test_what_belongs_to_the_data_or_to_nothing_cannot_be_tuned(name):
    with pytest.raises(TrainingDataError, match=f"'{name}'.*cannot be tuned; choose from"):
        draw_points({name: Choice(choices=[1])}, BASE, 2, 0)


def test_a_draw_that_is_not_allowed_is_refused():
    with pytest.raises(TrainingDataError, match="dropout"):
        draw_points({"dropout": Choice(choices=[1.5])}, BASE, 2, 0)


@pytest.mark.parametrize("bounds", [{"low": 2.0, "high": 1.0}, {"low": 0.0, "high": 1.0, "log": True}])
def test_a_range_without_numbers_is_refused(bounds):
    with pytest.raises(ValueError, match="low"):
        Range(**bounds)
