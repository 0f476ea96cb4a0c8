import pytest

from toque.functions.training.cost import Cost
from toque.functions.training.errors import TrainingDataError
from toque.functions.training.tabular.params import TabularParams
from toque.functions.tuning.space import DEFAULT_SPACE, Choice, Limits, Range, draw_points, grid_points

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
def test_settings_of_the_data_and_unknown_settings_cannot_be_tuned(name):
    with pytest.raises(TrainingDataError, match=f"'{name}'.*cannot be tuned; choose from"):
        draw_points({name: Choice(choices=[1])}, BASE, 2, 0)


def test_a_draw_that_is_not_allowed_is_refused():
    with pytest.raises(TrainingDataError, match="dropout"):
        draw_points({"dropout": Choice(choices=[1.5])}, BASE, 2, 0)


@pytest.mark.parametrize("bounds", [{"low": 2.0, "high": 1.0}, {"low": 0.0, "high": 1.0, "log": True}])
def test_a_range_without_numbers_is_refused(bounds):
    with pytest.raises(ValueError, match="low"):
        Range(**bounds)


def test_a_grid_is_every_combination_once_and_the_given_setting_first():
    space = {"lr": Range(low=1e-3, high=1e-1, log=True, steps=3), "dropout": Choice(choices=[0.2, 0.5])}
    points = grid_points(space, BASE.model_copy(update={"lr": 1e-3}))
    assert [(round(point.lr, 6), point.dropout) for point in points] == [
        (0.001, 0.2),  # the given setting is one of them
        (0.001, 0.5),
        (0.01, 0.2),
        (0.01, 0.5),
        (0.1, 0.2),
        (0.1, 0.5),
    ]
    with pytest.raises(TrainingDataError, match=r"no grid: a grid over 0.1 to 0.2 needs steps="):
        grid_points({"dropout": Range(low=0.1, high=0.2)}, BASE)
    with pytest.raises(TrainingDataError, match="cannot be tuned"):
        grid_points({"bins": Choice(choices=[3])}, BASE)


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({}, None),
        ({"hours": 2.1, "cpu_hours": 8.1, "gpu_hours": 1.1, "money": 3.1}, None),
        ({"hours": 2}, "limits.hours=2 reached"),
        ({"cpu_hours": 7.5}, "limits.cpu_hours=7.5 reached"),
        ({"gpu_hours": 1}, "limits.gpu_hours=1 reached"),
        ({"money": 3}, "limits.money=3 reached"),
    ],
)
def test_a_sweep_ends_at_the_first_of_its_limits(limits, says):
    cost = Cost(cpu_hours=8, gpu_hours=1, money=3, currency="EUR")
    assert Limits(**limits).reached(hours=2, cost=cost) == says


def test_a_limit_of_zero_is_refused():
    with pytest.raises(ValueError, match="greater than 0"):
        Limits(hours=0)
