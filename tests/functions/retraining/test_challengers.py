"""Which challenger is best, whatever the label is."""

import json

import pytest

from tests.functions.training.conftest import context, one_thread  # noqa: F401 - fixtures
from tests.functions.training.test_tasks import MULTI, NAMES, NUMBER, prices, seasons
from toque.functions.evaluation import Gate
from toque.functions.project import ModelDefinition
from toque.functions.retraining.challengers import Challenger, _judge, best_of
from toque.functions.training import train_tabular
from toque.registry import Table

LENIENT = Gate(max_ece=None, max_log_loss_ratio={"constant": 1.5})


@pytest.mark.parametrize(
    ("model", "make", "params", "loss"),
    [("season", seasons, MULTI, "log_loss"), ("price", prices, NUMBER, "rmse")],
)
def test_the_best_is_the_one_with_the_lowest_loss_of_its_kind(context, model, make, params, loss):  # noqa: F811
    training = Table(context.store, "training").append(make(seed=0))
    held_out = Table(context.store, "held-out").append(make(seed=1).slice(0, 600))
    definition = ModelDefinition(
        name=model,
        service=model,
        entities="held-out",
        label="y",
        numeric=("a", "b"),
        categorical=("c",),
        training=params,
        gate=LENIENT,
    )
    challengers = []
    for window, epochs in (("short", params.epochs - 2), ("long", params.epochs)):
        given = params.model_copy(update={"epochs": epochs, "lr": 1e-2 if window == "long" else 4e-3})
        trained = train_tabular(model, training, **NAMES, params=given)
        judged = _judge(definition, definition.gate, window, trained.version, held_out)
        assert judged.passed, judged
        told = context.registry().get_version(model, trained.version).metrics[loss]
        assert judged.loss == pytest.approx(told, rel=0.5)  # of other rows
        challengers.append(judged)
    assert best_of(challengers) == min(challengers, key=lambda one: one.loss)
    assert best_of(challengers[:1]) == challengers[0]


def test_what_journals_call_log_loss_is_the_loss():
    told = {"window": "all", "version": 3, "passed": True, "log_loss": 0.5}
    challenger = Challenger.model_validate(told)
    assert challenger.loss == 0.5
    assert Challenger.model_validate(json.loads(challenger.model_dump_json())) == challenger
