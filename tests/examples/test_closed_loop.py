"""Models of other libraries go through the whole loop: sweep, gate, drift, retrain, shadow, canary, promotion."""

from pathlib import Path

import pytest

from examples.digits import loop as digits
from examples.digits.loop import images
from examples.digits.model import digit_model
from examples.flights_xgboost import loop as flights_loop
from examples.flights_xgboost.loop import late_flights, take_offs
from examples.loop import FIRST_DAY, LAST_DAY, Clock, Loop
from examples.ranking import loop as ranking
from examples.ranking.loop import flight_order, requests
from examples.texts import loop as texts_loop
from examples.texts.loop import package_model, texts
from tests.examples import kinds
from tests.examples.streets import SPACE, streets, typed
from toque.functions.retraining.jobs import retrains
from toque.functions.rollout import rollout_status
from toque.functions.runtime.context import Context, use_context
from toque.registry import open_store

AT_EACH_CHANGE = ("tests.examples.streets", "onnx")
EXAMPLES = {
    "examples.digits": (digit_model, images, digits.SPACE),
    "examples.flights_xgboost": (late_flights, take_offs, flights_loop.SPACE),
    "examples.ranking": (flight_order, requests, ranking.SPACE),
    "examples.texts": (package_model, texts, texts_loop.SPACE),
    "tests.examples.streets": (streets, typed, SPACE),
    "onnx": (kinds.by_graph, kinds.buses, kinds.SPACE),
    "mlflow": (kinds.by_mlflow, kinds.buses, kinds.SPACE),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Any type hint:UserWarning")  # MLflow's own, at its import
@pytest.mark.parametrize(
    "project",
    [pytest.param(name, marks=() if name in AT_EACH_CHANGE else pytest.mark.long) for name in EXAMPLES],
)
def test_what_users_do_differently_leads_to_a_promoted_challenger(tmp_path: Path, project: str) -> None:
    clock, url = Clock(), f"{tmp_path.as_uri()}/store"
    model, rows, space = EXAMPLES[project]
    module = project if "." in project else kinds.__name__
    with use_context(Context(open_store(url), url, project=module, clock=clock, actor="tests")) as used:
        loop = Loop(model, rows, space, clock)
        first = loop.begin()
        registry = used.registry()
        assert registry.get_version(model.name, first).tags["kind"] == model.learner.kind
        actions: list[str] = []
        for day in range(FIRST_DAY, LAST_DAY):
            actions.append(loop.day(day).rollout.action)
            if registry.get_version(model.name, "champion").version != first:
                break
        champion = registry.get_version(model.name, "champion")
        assert champion.version != first, (actions, list(rollout_status(model.name).outcomes))
        assert champion.tags["retrain"]
        # what the sweep had found is what the challenger was trained with
        assert champion.tags.get("parameters") == registry.get_version(model.name, first).tags.get(
            "parameters"
        )
        outcomes = rollout_status(model.name).outcomes
        (outcome,) = [one for one in outcomes if one.challenger == champion.version]
        assert outcome.stage == "promoted"
        assert retrains(model.name).refresh().running is None
