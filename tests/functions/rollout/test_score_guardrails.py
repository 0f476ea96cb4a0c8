"""Rollouts that are guarded by the scores of a language model's live answers, end to end but for the engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.functions.rollout.conftest import MODEL, RolloutPlatform
from tests.functions.rollout.test_language_models import POLICY, chat, chats
from tests.functions.rollout.test_ramps import LiveWorld
from toque.functions.evaluation.language import Scorer
from toque.functions.monitoring.language import LanguageMonitors
from toque.functions.monitoring.language.jobs import set_language_monitors, watch_language_model
from toque.functions.rollout import Guardrail, RolloutError, start_rollout
from toque.functions.rollout.jobs import rollouts
from toque.functions.runtime import Context, use_context
from toque.registry import Registry
from toque.registry.models.traffic import Traffic

__all__ = ["chat"]
JSON = Guardrail(name="json", source="score", margin=0.1)
SCORED = POLICY.model_copy(update={"guardrails": (JSON,)})
MONITORS = LanguageMonitors(share=0.5, scorers=(Scorer(kind="json"),), drift=None)
GOOD, BAD = '{"a": 1}', "I think it is one."
ENDED = ("promoted", "rolled_back", "inconclusive")


@dataclass
class Served:
    """Traffic of the registry, as the world reads it."""

    registry: Registry

    @property
    def now(self) -> Traffic:
        return self.registry.traffic(MODEL)


@pytest.fixture
def world(platform: RolloutPlatform, chat: Context) -> Iterator[LiveWorld]:
    """A canary of a language model whose answers are scored."""
    found = LiveWorld(platform)
    platform.registry = Served(chat.registry())  # type: ignore[assignment]  # the part that the world reads
    with use_context(chat):
        controller = rollouts(MODEL, read_live=found.read)
        found.rollouts = lambda: controller  # type: ignore[method-assign]
        set_language_monitors(MODEL, MONITORS)
        start_rollout(MODEL, 2, SCORED, reason="a try")
        found.minute()
        yield found


def hours(
    world: LiveWorld, count: int, says: dict[int, list[str]], *, scored: bool = True
) -> tuple[str, str]:
    """Hours of answers, scored as the schedule does; how the rollout ends, and by which rule."""
    for _ in range(count):
        arms = {arm.version: arm.name for arm in world.platform.registry.now.arms}
        chats(world.platform, arms, {}, says=says)
        for _ in range(60):
            last = world.minute()
            if last.stage in ENDED:
                return last.stage, last.rule
        if scored:
            watch_language_model(MODEL)
    return last.stage, last.rule


def test_a_canary_of_worse_scores_is_rolled_back_by_the_reflexes(world: LiveWorld):
    assert world.platform.registry.now.versions == (1, 2)
    assert hours(world, 8, {1: [GOOD], 2: [GOOD, BAD]}) == ("rolled_back", "guardrails")
    assert world.platform.registry.now.versions == (1,)
    entries: list[Any] = [each for each in world.rollouts().entries() if each.body["event"] == "decided"]
    assert all(world.rollouts().explain(each.number).same for each in entries)
    sums = entries[-1].body["evidence"]["metrics"]["json"]
    assert sums["rows"] == sums["requests"]  # of the sampled half, each answer has its score
    assert 300 < sums["rows"] < 500 * 6


def test_a_canary_of_equal_scores_is_promoted(world: LiveWorld):
    assert hours(world, 12, {1: [GOOD], 2: [GOOD]}) == ("promoted", "service_done")


def test_a_canary_that_nobody_scores_is_not_promoted(world: LiveWorld):
    stage, _ = hours(world, 4, {1: [GOOD], 2: [GOOD]}, scored=False)
    assert stage == "canary"
    assert "guardrail json: 0 of" in str(world.rollouts().status().model_dump())


def test_a_guardrail_by_a_score_that_is_not_made_is_refused(chat: Context):
    with use_context(chat):
        with pytest.raises(
            RolloutError, match=r"guardrails: \['json'\] with source='score', and the live answers of 'late'"
        ):
            start_rollout(MODEL, 2, SCORED)
        set_language_monitors(MODEL, MONITORS)
        assert start_rollout(MODEL, 2, SCORED).policy.guardrails == (JSON,)
