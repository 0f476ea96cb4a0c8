"""The door behind HAProxy, as a platform serves it: an answer, a stream in pieces, a caller who hangs up."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from functions.generative import EngineSettings, register_generative
from registry import Access, Registry, open_store
from tests.ports import free_port

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.slow]
ASKED: Any = [{"role": "user", "content": "What is 2+2?"}]


def test_serve_passes_streams_on_and_a_hang_up_too(weights: Path, tmp_path: Path):
    store = open_store(f"file://{tmp_path}/store")
    registry = Registry(store, actor="ada")
    register_generative(
        registry, "smol", weights=weights, settings=EngineSettings(context_length=512, slots=1)
    )
    registry.promote("smol", 1)
    token = Access(store, actor="root").create_token("caller", "caller")
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TOQUE_")}
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.ray_apps.generative.served", str(port)],
        env=environment | {"TOQUE_STORE": store.url}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    try:
        assert any(line == "ready\n" for line in server.stdout)
        client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key=token, timeout=120, max_retries=3
        )
        answer = client.chat.completions.create(model="smol", messages=ASKED, temperature=0, max_tokens=16)
        assert "4" in (answer.choices[0].message.content or "")
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("other")
        long: dict[str, Any] = {
            "model": "smol",
            "messages": ASKED,
            "max_tokens": 400,
            "logit_bias": {"2": -100},
        }
        stream = client.chat.completions.create(stream=True, **long)
        begin, pieces = time.monotonic(), iter(stream)
        first = next(pieces)
        assert first.model == "smol@1"
        stream.close()
        # The one slot is free again, long before 400 tokens would have been made.
        client.chat.completions.create(model="smol", messages=ASKED, max_tokens=1)
        taken_s = time.monotonic() - begin
        whole = time.monotonic()
        list(client.chat.completions.create(stream=True, **long))
        assert taken_s < (time.monotonic() - whole) / 2
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
        server.stdout.close()
