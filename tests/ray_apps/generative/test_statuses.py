"""Responses of a language model by status, which error budgets are judged by."""

from pathlib import Path
from typing import Any

import openai
import pytest

from tests.ray_apps.generative.conftest import ServedDoor
from toque.functions.generative import EngineSettings, register_generative

MODEL = "statuses"


def test_responses_are_counted_by_status_streams_too(served: ServedDoor, small: Path):
    settings = EngineSettings(context_length=128, slots=1)
    register_generative(served.registry, MODEL, weights=small, settings=settings)
    served.registry.promote(MODEL, 1)
    asked: Any = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    client = served.client()
    client.chat.completions.create(**asked)
    list(client.chat.completions.create(**asked, stream=True))
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**{**asked, "model": f"{MODEL}@9"})
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**{**asked, "max_tokens": 200})
    models = served.run(served.door._models("default"))
    assert served.run(models.get(MODEL)).statuses == {200: 2, 404: 1, 400: 1}
