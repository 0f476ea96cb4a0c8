"""Which version answers: the split by unit and conversation, and shadows."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.ray_apps.generative.conftest import TEMPLATE, ServedDoor
from toque.functions.generative import EngineSettings, Prompt, register_generative

MODEL = "split"
SETTINGS = EngineSettings(context_length=256, slots=8, max_tokens=4)


def prompt(word: str) -> Prompt:
    return Prompt.model_validate({"messages": [{"role": "system", "content": f"You like {word}."}]})


@pytest.fixture(scope="module")
def split(served: ServedDoor, weights: Path) -> Iterator[ServedDoor]:
    """A model with two prompts on the same weights, the first of which is the champion."""
    register_generative(served.registry, MODEL, weights=weights, settings=SETTINGS, prompt=prompt("tea"))
    register_generative(served.registry, MODEL, keep=1, prompt=prompt("coffee"))
    served.registry.promote(MODEL, 1)
    return served


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ask(client: openai.OpenAI, text: str = "Hi", **options: Any) -> Any:
    asked = [{"role": "user", "content": text}]
    return client.chat.completions.create(
        model=MODEL,
        messages=asked,
        temperature=0,
        **({"max_tokens": 1} | options),  # type: ignore[call-overload]
    )


def versions(client: openai.OpenAI, units: list[str]) -> list[str]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda unit: ask(client, user=unit).model, units))


def test_a_unit_and_a_conversation_stay_on_their_version(split: ServedDoor):
    client, registry = split.client(), split.registry
    registry.set_traffic(MODEL, {"b": (2, 0.5)})
    units = [f"unit-{number}" for number in range(24)]
    until(lambda: len(set(versions(client, units))) == 2)
    traffic = registry.get_model(MODEL).traffic
    assert traffic is not None
    assert versions(client, units) == [f"{MODEL}@{traffic.assign(unit).version}" for unit in units]
    turns: list[Any] = [{"role": "user", "content": "Do you like tea?"}]
    first = client.chat.completions.create(model=MODEL, messages=turns, max_tokens=1).model
    turns += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Why?"}]
    assert client.chat.completions.create(model=MODEL, messages=turns, max_tokens=1).model == first
    row = split.log.rows()[-1]
    assert row[5].startswith("conversation-")
    assert row[16] == 0.5  # the chance of the arm


def test_a_shadow_answers_the_same_request_with_its_own_prompt(split: ServedDoor):
    client, registry = split.client(), split.registry
    registry.set_traffic(MODEL, {}, shadows=[2])
    asked: set[str] = set()

    def shadowed() -> list[Any]:
        asked.add(ask(client, user="somebody").id)
        return [row for row in split.log.rows() if row[4] and row[0] in asked]

    until(lambda: bool(shadowed()))
    row = shadowed()[0]
    assert (row[2], row[3], row[5]) == (2, "shadow", "somebody")
    tokens = split.log.outputs(row)["tokens"]
    assert tokens[2] == 1
    assert json.loads(split.log.outputs(row)["message"])["role"] == "assistant"


def test_a_shadow_whose_template_has_no_place_for_tools_answers_no_request_that_has_some(
    served: ServedDoor, small: Path
):
    client, registry, model = served.client(), served.registry, "split-tools"
    settings = EngineSettings(context_length=512, slots=1)
    register_generative(registry, model, weights=small, settings=settings, chat_template=TEMPLATE.read_text())
    register_generative(registry, model, weights=small, settings=settings)
    registry.promote(model, 1)
    registry.set_traffic(model, {}, shadows=[2])

    def asked(**options: Any) -> str:
        found = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Hi"}], max_tokens=1, **options
        )
        return str(found.id)

    def shadowed() -> set[str]:
        return {row[0] for row in served.log.rows() if row[4]}

    plain = [asked()]
    until(lambda: bool(shadowed() & {*plain}) or bool(plain.append(asked())))
    with_tools = asked(tools=[{"type": "function", "function": {"name": "look", "parameters": {}}}])
    last = asked()  # copies are answered in their order
    until(lambda: last in shadowed())
    assert with_tools not in shadowed()
