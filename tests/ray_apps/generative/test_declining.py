"""Answers that decline in the words of the model's policy: counted at the door from when the policy says so."""

from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY

from tests.ray_apps.generative.conftest import ServedDoor
from tests.waiting import until
from toque.clusters.telemetry.metrics import flush_now
from toque.functions.generative import EngineSettings, Prompt, register_generative
from toque.registry import ModelPolicy

MODEL, SAID = "french", "Je ne peux pas."


def prompt() -> Prompt:
    """A prompt by which every answer is this one text."""
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"const": SAID}}}
    return Prompt.model_validate({"response_format": schema, "parameters": {"max_tokens": 40}})


def declined() -> float:
    flush_now()
    labels = {"workspace": "default", "model": MODEL, "version": "1", "arm": "champion"}
    return REGISTRY.get_sample_value("toque_generative_declined_answers_total", labels) or 0.0


def ask(served: ServedDoor) -> str:
    asked: Any = [{"role": "user", "content": "Bonjour"}]
    answer = served.client().chat.completions.create(model=MODEL, messages=asked)
    return answer.choices[0].message.content or ""


def test_the_policy_says_how_answers_decline(served: ServedDoor, small: Path):
    registry = served.registry
    settings = EngineSettings(context_length=256, slots=1)
    register_generative(registry, MODEL, weights=small, settings=settings, prompt=prompt())
    registry.promote(MODEL, 1)
    assert SAID in ask(served)
    assert declined() == 0
    registry.set_policy(MODEL, ModelPolicy(declining=(r"\bje ne peux pas\b",)))

    def is_counted() -> bool:
        ask(served)
        return declined() > 0

    until(is_counted)
