"""The digit reader goes through the whole loop: sweep, gate, drift, retrain, shadow, canary, promotion."""

import sys

from examples.digits import MODELS
from examples.digits.loop import FIRST_DAY, LAST_DAY, MODEL, Clock, Loop
from functions.retraining.jobs import retrains
from functions.rollout import rollout_status
from functions.runtime.context import Context, use_context
from registry import open_store


def test_a_new_scanner_leads_to_a_promoted_challenger(tmp_path):
    assert "examples.digits" in sys.modules
    clock, url = Clock(), f"{tmp_path.as_uri()}/store"
    used = Context(open_store(url), url, project="examples.digits", clock=clock, actor="digits")
    with use_context(used):
        loop = Loop(clock)
        first = loop.begin()
        registry = used.registry()
        assert registry.get_version(MODEL, first).tags["kind"] == "sklearn"
        actions: list[str] = []
        for day in range(FIRST_DAY, LAST_DAY):
            actions.append(loop.day(day).rollout.action)
            if registry.get_version(MODEL, "champion").version != first:
                break
        champion = registry.get_version(MODEL, "champion")
        assert champion.version != first, (actions, list(rollout_status(MODEL).outcomes))
        assert champion.tags["retrain"]
        # what the sweep had found is what the challenger was trained with
        assert champion.tags.get("parameters") == registry.get_version(MODEL, first).tags.get("parameters")
        (outcome,) = [one for one in rollout_status(MODEL).outcomes if one.challenger == champion.version]
        assert outcome.stage == "promoted"
        assert retrains(MODEL).refresh().running is None
    assert MODELS[0].outcome == "multiclass"
