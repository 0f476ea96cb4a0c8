"""Settings that hang on what was found before."""

import math
import sys

import pytest

from toque.functions.training.errors import TrainingDataError, TrainingError
from toque.functions.training.tabular.params import TabularParams
from toque.functions.tuning.space import Choice, Range, TpeSampler

BASE = TabularParams(lr=0.5, epochs=2, patience=2)
SPACE = {"lr": Range(low=1e-5, high=1.0, log=True), "hidden": Choice(choices=[[8], [16, 8]])}


def sampler(count: int = 30, *, space=SPACE) -> TpeSampler:
    return TpeSampler(space, BASE, count=count, seed=3)


def loss(params: TabularParams) -> float:
    """Least at lr = 1e-3 and one hidden layer."""
    return (math.log10(params.lr) + 3) ** 2 + 0.5 * len(params.hidden)


def searched(
    sampler: TpeSampler, tried: list[TabularParams] | None = None, count: int = 30
) -> list[TabularParams]:
    tried = list(tried or [])
    for number in range(len(tried), count):
        tried.append(sampler.propose(number, [(each, loss(each)) for each in tried]))
    return tried


def test_tpe_begins_with_the_base_settings_and_finds_the_best_region():
    tried = searched(sampler())
    assert len(tried) == 30
    assert tried[0] == BASE
    assert tried == searched(sampler())  # by its seed
    best = min(tried, key=loss)
    assert best.hidden == (8,)
    assert 3e-4 < best.lr < 3e-3
    late = [loss(each) for each in tried[15:]]
    assert sum(late) / len(late) < sum(map(loss, tried[1:6])) / 5


def test_an_interrupted_search_proposes_as_an_undisturbed_one():
    tried = searched(sampler())
    assert searched(sampler(), tried[:3]) == tried
    assert searched(sampler(), tried[:20]) == tried


def test_a_trial_without_a_loss_is_not_learnt_from():
    tried = [(each, loss(each)) for each in searched(sampler(), count=12)]
    poor = (tried[-1][0].model_copy(update={"lr": 0.9}), math.nan)
    assert sampler().propose(13, [*tried, poor]) == sampler().propose(13, tried)
    assert sampler().propose(13, tried) != sampler().propose(14, tried)


def test_refused_settings_and_a_missing_package_are_errors(monkeypatch):
    bad = sampler(2, space={"dropout": Choice(choices=[7.0])})
    assert bad.propose(0, []) == BASE
    with pytest.raises(TrainingDataError, match="draws a setting that is not allowed"):
        bad.propose(1, [])
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(TrainingError, match=r"needs the package: pip install .*\[sweeps\]"):
        sampler()
