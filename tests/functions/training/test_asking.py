"""Settings that hang on what was found before, without a cluster: the searcher as Tune would ask it."""

import math
import sys

import pytest

from functions.training.asking import METRIC, Asker
from functions.training.errors import TrainingDataError, TrainingError
from functions.training.params import TabularParams
from functions.training.space import Choice, Range, Trial

BASE = TabularParams(lr=0.5, epochs=2, patience=2)
SPACE = {"lr": Range(low=1e-5, high=1.0, log=True), "hidden": Choice(choices=[[8], [16, 8]])}


def asker(count: int = 30, *, done: dict[int, Trial] | None = None, space=SPACE) -> Asker:
    return Asker(space, BASE, count=count, seed=3, done=done or {}, rows=1_000)


def loss(params: TabularParams) -> float:
    """Least at lr = 1e-3 and one hidden layer."""
    return (math.log10(params.lr) + 3) ** 2 + 0.5 * len(params.hidden)


def searched(asker: Asker) -> list[TabularParams]:
    numbers = []
    while (config := asker.suggest(f"t{len(numbers)}")) != asker.FINISHED:
        numbers.append(config["point"])
        assert TabularParams.model_validate(config["settings"]) == asker.points[config["point"]]
        result = {METRIC: loss(asker.points[config["point"]])}
        asker.on_trial_result(f"t{len(numbers) - 1}", {METRIC: result[METRIC] + 1})
        asker.on_trial_complete(f"t{len(numbers) - 1}", result)
    return [asker.points[number] for number in numbers]


def test_it_begins_with_the_given_and_finds_the_best_region():
    tried = searched(asker())
    assert len(tried) == 30
    assert tried[0] == BASE
    assert tried == searched(asker())  # by its seed
    best = min(tried, key=loss)
    assert best.hidden == (8,)
    assert 3e-4 < best.lr < 3e-3
    late = [loss(each) for each in tried[15:]]
    assert sum(late) / len(late) < sum(map(loss, tried[1:6])) / 5


def test_finished_trials_are_learnt_from_and_not_proposed_again():
    tried = searched(asker())
    done = {
        number: Trial(run_id=str(number), params=params, valid_loss=loss(params), epochs=1, failed=False)
        for number, params in enumerate(tried[:20])
    }
    again = asker(24, done=done)
    assert [again.suggest("a")["point"], again.suggest("b")["point"]] == [20, 21]
    assert again.points.keys() == set(range(22))
    again.on_trial_complete("a", {METRIC: 1.0}, error=True)
    again.on_trial_complete("b", None)  # it never reported
    assert [again.suggest("c")["point"], again.suggest("d")["point"], again.suggest("e")] == [
        22,
        23,
        again.FINISHED,
    ]


def test_what_is_not_allowed_or_not_installed_is_told(monkeypatch):
    bad = asker(2, space={"dropout": Choice(choices=[7.0])})
    bad.suggest("first")
    with pytest.raises(TrainingDataError, match="draws a setting that is not allowed"):
        bad.suggest("second")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(TrainingError, match=r"needs the package: pip install .*\[sweeps\]"):
        asker()
