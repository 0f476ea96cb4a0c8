"""Rollouts of language models: what users say of the answers, and which loss there is."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from tests.functions.rollout.conftest import MODEL, RolloutPlatform
from tests.functions.rollout.test_ramps import LiveWorld
from toque.functions.evaluation.errors import EvaluationError
from toque.functions.evaluation.realised_loss import score
from toque.functions.generative import register_generative
from toque.functions.prediction_log import LABELS_TABLE, Label, encode_labels, outcomes, predictions_table
from toque.functions.prediction_log.writing.columns import label_columns, prediction_columns
from toque.functions.rollout import (
    Guardrail,
    RolloutError,
    RolloutPolicy,
    plan_rollout,
    rollout_status,
    start_rollout,
)
from toque.functions.rollout.controller import Rollouts
from toque.functions.rollout.planning import jobs
from toque.functions.runtime import Context, use_context
from toque.ray_apps.generative.answering.recording import IN_VIEW, request_tensors, response_tensors
from toque.ray_apps.generative.openai.answers import AnswerRecord
from toque.ray_apps.generative.openai.requests import CHAT, Ask
from toque.ray_apps.predictor.inference.recording import Recorder
from toque.registry import Registry, Table

HOUR = timedelta(hours=1)
POLICY = RolloutPolicy(
    promote_by="service",
    canary_share=0.5,
    canary_min=HOUR,
    ramp_hold=timedelta(0),
    cohort=HOUR,
    label_delay=HOUR,
    dependence="unit",
    guardrails=(Guardrail(name="thumbs", margin=0.1),),
    loss="edit_distance",
)


class Kept(list[bytes]):
    """A log that keeps its records."""

    def append(self, payload: bytes) -> int:  # type: ignore[override]  # as a log
        super().append(payload)
        return len(self)

    def extend(self, payloads: Any) -> int:  # type: ignore[override]
        super().extend(payloads)
        return len(self)


def message(text: str) -> AnswerRecord:
    return AnswerRecord(
        message={"role": "assistant", "content": text}, finish_reason="stop", prompt_tokens=9, completion_tokens=3,
        first_token_s=0.1, between_tokens_s=0.01,
    )  # fmt: skip


def chats(
    platform: RolloutPlatform,
    arms: dict[int, str],
    labels: dict[int, Any],
    *,
    each: int = 400,
    says: dict[int, list[str]] | None = None,
) -> None:
    """Log chats of each version's arm as the door does, `each` in this hour, what it says, and what users said of it, in turn."""
    kept, said = Kept(), []
    ask = Ask(CHAT, MODEL, None, {"messages": [{"role": "user", "content": "Hi"}]}, None, None)
    for version, arm in arms.items():
        recorder, texts = Recorder(MODEL, kept), ["Yes."] if says is None else says[version]
        for number in range(each):
            at = platform.now + HOUR * (number / each)
            name = f"{platform.now:%j%H}-{version}-{number}"
            recorder.record(
                id=name, version=version, arm=arm, shadow=False, unit=name, at_us=int(at.timestamp() * 1e6),
                latency_ms=5.0, rows=1, inputs=request_tensors(ask), outputs=response_tensors(message(texts[number % len(texts)])),
                in_view=IN_VIEW,
            )  # fmt: skip
            if version in labels:
                said.append(Label(name, labels[version][number % len(labels[version])], at, at))
    Table(platform.store, predictions_table(MODEL)).append(
        prediction_columns(kept)[MODEL], partition_by=["day"], merge_schema=True
    )
    if said:
        Table(platform.store, LABELS_TABLE).append(
            label_columns([encode_labels(said)]), partition_by=["day"], merge_schema=True
        )


@pytest.fixture
def world(platform: RolloutPlatform) -> LiveWorld:
    """A rollout that is in its canary, ticked by one controller, as the ticker has one for each model."""
    found = LiveWorld(platform)
    controller = found.rollouts()
    found.rollouts = lambda: controller  # type: ignore[method-assign]
    platform.now += HOUR
    found.rollouts().start(2, POLICY, reason="a try")
    found.minute()
    assert found.platform.registry.now.versions == (1, 2)
    return found


def arms_of(platform: RolloutPlatform) -> dict[int, str]:
    return {arm.version: arm.name for arm in platform.registry.now.arms}


def ticks(world: LiveWorld, hours: int, labels: dict[int, Any]) -> tuple[str, str]:
    """Hours of chats, each begun with a tick of the reflexes; how the rollout ends, by which rule."""
    for _ in range(hours):
        chats(world.platform, arms_of(world.platform), labels)
        for _ in range(60):
            last = world.minute()
            if last.stage in ("promoted", "rolled_back", "inconclusive"):
                return last.stage, last.rule
    return last.stage, last.rule


@pytest.mark.parametrize(
    ("thumbs", "end"),
    [
        ({1: [1.0, 1.0, 1.0, 0.0], 2: [1.0, 0.0, 0.0, 0.0]}, ("rolled_back", "guardrails")),
        ({1: [1.0, 1.0, 1.0, 0.0], 2: [1.0, 1.0, 1.0, 0.0]}, ("promoted", "service_done")),
    ],
)
def test_thumbs_roll_a_canary_back_and_must_be_shown_harmless_before_it_is_promoted(
    world: LiveWorld, thumbs: dict[int, Any], end: tuple[str, str]
):
    assert ticks(world, 12, thumbs) == end
    entries: list[Any] = [
        each for each in Rollouts.entries(world.rollouts()) if each.body["event"] == "decided"
    ]
    assert all(world.rollouts().explain(each.number).same for each in entries)


def test_a_canary_without_thumbs_is_not_promoted(world: LiveWorld):
    for _ in range(200):
        last = world.minute()
    assert last.stage == "canary"
    assert "guardrail thumbs: not judged yet" in str(world.rollouts().status().model_dump())


def test_a_correction_is_held_against_the_content_of_the_message_and_a_thumb_is_kept(
    platform: RolloutPlatform,
):
    chats(platform, {1: "champion"}, {1: [1.0, "Yes.", "No."]}, each=3)
    rows = outcomes(platform.store, MODEL, platform.now, platform.now + HOUR)
    found = score(rows, loss="edit_distance")
    assert rows["answer_text"].to_pylist()[1:] == ["Yes.", "Yes."]
    assert found.answered.all()
    np.testing.assert_allclose(
        found.loss, [np.nan, 0.0, 0.75]
    )  # by hand: "No." becomes "Yes." by three letters of four
    np.testing.assert_allclose(found.told, [1.0, np.nan, np.nan])
    assert orjson.loads(response_tensors(message("Yes."))["message"][0, 0])["content"] == "Yes."


@pytest.fixture
def chat(platform: RolloutPlatform, tmp_path: Path) -> Context:
    """A language model with two versions, of weights that nobody computes with."""
    (tmp_path / "weights.gguf").write_bytes(b"GGUF")
    registry = Registry(platform.store, actor="ada", clock=platform.clock)
    for _ in range(2):
        register_generative(registry, MODEL, weights=tmp_path / "weights.gguf")
    registry.promote(MODEL, 1)
    return Context(platform.store, platform.store.url, clock=platform.clock, actor="ada")


def test_the_loss_of_a_language_model_is_one_of_texts(chat: Context):
    with use_context(chat):
        with pytest.raises(RolloutError, match=r"policy\.loss='log_loss': late@2 is a language model"):
            start_rollout(MODEL, 2, RolloutPolicy(loss="log_loss"))
        start_rollout(MODEL, 2, RolloutPolicy(promote_by="service"), reason="a try")
        current = rollout_status(MODEL).current
    assert current is not None
    assert (current.policy.loss, current.policy.promote_by) == ("edit_distance", "service")


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[RolloutPolicy]:
    """Policies that plans were made by, of a log in which there is nothing."""
    found: list[RolloutPolicy] = []

    def replay(read: Any, scorer: Any, policy: RolloutPolicy, **_: Any) -> Any:
        found.append(policy)
        raise EvaluationError("nothing was logged")

    monkeypatch.setattr(jobs, "load_version", lambda *_: None)
    monkeypatch.setattr(jobs, "replayed_loss", replay)
    return found


@pytest.mark.parametrize(
    "given", [{}, {"promote_by": "service"}, {"loss": "edit_distance"}, {"loss": "mismatch", "alpha": 0.1}]
)
def test_a_plan_judges_the_policy_that_the_rollout_has(
    chat: Context, judged: list[RolloutPolicy], given: dict[str, Any]
):
    with use_context(chat):
        with pytest.raises(RolloutError, match="nothing was logged"):
            plan_rollout(MODEL, 2, RolloutPolicy(**given))
        assert judged == [start_rollout(MODEL, 2, RolloutPolicy(**given)).policy]


@pytest.mark.parametrize("loss", ["log_loss", "squared_error", "ndcg_loss"])
def test_a_plan_refuses_the_loss_that_a_rollout_refuses(
    chat: Context, judged: list[RolloutPolicy], loss: Any
):
    for asked in (plan_rollout, start_rollout):
        with use_context(chat), pytest.raises(RolloutError, match=rf"policy\.loss='{loss}': late@2 is"):
            asked(MODEL, 2, RolloutPolicy(loss=loss))
    assert judged == []


def test_a_version_that_an_engine_alone_runs_is_no_traceback_to_plan(chat: Context):
    with (
        use_context(chat),
        pytest.raises(RolloutError, match=r"late@2 cannot be planned: .* answers by an engine alone; `toque"),
    ):
        plan_rollout(MODEL, 2)
