"""Error budgets of declared objectives: what was spent in the window, and how fast it burns."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pyarrow as pa
import pytest

from toque.functions.prediction_log import PINNED, predictions_table
from toque.functions.prediction_log.records import PREDICTIONS
from toque.functions.rollout import RolloutPolicy, Slo, error_budgets
from toque.functions.rollout.objectives import ErrorBudget
from toque.functions.runtime.clock import FixedClock
from toque.functions.runtime.context import Context, use_context
from toque.registry import ObjectStore, Table, open_store

NOW = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
PROJECT = "project_of_objectives"
SLOS = (
    Slo(name="answers", target=0.99, window=timedelta(days=7)),
    Slo(name="fast", target=0.9, slow_ms=50.0, window=timedelta(days=7)),
)


@pytest.fixture
def used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    project = ModuleType(PROJECT)
    models = [SimpleNamespace(name=name, rollout=RolloutPolicy(slos=SLOS)) for name in ("late", "silent")]
    project.__dict__.update(FEATURES=[], MODELS=[*models, SimpleNamespace(name="x", rollout=RolloutPolicy())])
    monkeypatch.setitem(sys.modules, PROJECT, project)
    url = f"file://{tmp_path / 'store'}"
    context = Context(open_store(url), url, project=PROJECT, clock=FixedClock(NOW))
    with use_context(context):
        yield context


def log(
    store: ObjectStore, at: datetime, *, good: int = 0, bad: int = 0, slow: int = 0, arm: str = "champion"
) -> None:
    """Log answers of one moment: good ones, ones without an output or with none that is finite, and slow ones."""
    outputs = [[0.5]] * (good + slow) + [None if number % 3 else [float("nan")] for number in range(bad)]
    rows = [
        {
            "prediction_id": f"{at:%d%H%M}-{arm}-{number}", "model": "late", "version": 1, "arm": arm,
            "shadow": arm == "shadow", "unit": "u", "predicted_at": at, "latency_ms": 90.0 if good <= number < good + slow else 4.0,
            "numeric": [1.0], "categorical": None, "outputs": output, "missing": [], "entities": "{}", "day": f"{at:%Y-%m-%d}",
        }
        for number, output in enumerate(outputs)
    ]  # fmt: skip
    table = Table(store, predictions_table("late"))
    table.append(pa.Table.from_pylist(rows, schema=PREDICTIONS), partition_by=["day"])


def of(objective: str, model: str = "late") -> ErrorBudget:
    return next(each for each in error_budgets() if (each.model, each.objective) == (model, objective))


def test_answers_of_the_window_are_counted_and_those_that_no_user_got_are_not(used: Context) -> None:
    log(used.store, NOW - timedelta(days=3), good=900, bad=4, slow=96)
    log(used.store, NOW - timedelta(hours=20), good=1_000)
    log(used.store, NOW - timedelta(days=2), bad=500, arm="shadow")
    log(used.store, NOW - timedelta(days=2), bad=500, arm=PINNED)
    log(used.store, NOW - timedelta(days=30), bad=500)
    answers, fast = of("answers"), of("fast")
    assert (answers.answers, answers.bad) == (2_000, 4)
    assert answers.left == pytest.approx(1 - 4 / 20)
    assert (fast.answers, fast.bad) == (2_000, 96)
    assert fast.left == pytest.approx(1 - 96 / 200)
    assert not any(each.needs_somebody for each in error_budgets())
    silent = of("answers", "silent")
    assert (silent.answers, silent.left, silent.needs_somebody) == (0, None, False)


def test_a_budget_that_is_spent_or_burns_comes_first(used: Context) -> None:
    log(used.store, NOW - timedelta(days=5), good=50_000)
    log(used.store, NOW - timedelta(minutes=3), good=80, bad=40)
    first = error_budgets()[0]
    assert (first.model, first.objective, first.needs_somebody) == ("late", "answers", True)
    assert first.left is not None
    assert first.left > 0.9  # there is plenty, and it goes fast
    assert "times too fast" in first.text
    log(used.store, NOW - timedelta(hours=20), bad=600)
    spent = of("answers")
    assert spent.left is not None
    assert spent.left < 0
    assert "640 of 50720 answers were bad" in spent.text


def test_a_row_that_comes_days_late_is_counted_and_one_that_left_the_window_is_not(used: Context) -> None:
    log(used.store, NOW - timedelta(days=5), good=100, bad=1)
    before = of("answers")
    log(used.store, NOW - timedelta(days=5), good=1_000)
    assert of("answers").answers == before.answers + 1_000
    later = Context(used.store, used.store.url, project=PROJECT, clock=FixedClock(NOW + timedelta(days=9)))
    with use_context(later):
        assert of("answers").answers == 0


def test_without_a_project_no_objective_is_known(used: Context) -> None:
    with use_context(Context(used.store, used.store.url, clock=FixedClock(NOW))):
        assert error_budgets() == []
