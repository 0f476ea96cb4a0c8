"""Spans of the doors that are FastAPI's: those that the platform makes, and no others."""

from __future__ import annotations

import subprocess
import sys

import pytest

SPANS = """
import asyncio, sys
import httpx
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from toque.functions.runtime.context import Context
from toque.ray_apps.gateway.app import build_app
from toque.ray_apps.gateway.services import Services
from toque.ray_apps.mlflow import build_app as build_mlflow
from toque.registry import open_store

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
url = f"file://{sys.argv[2]}/store"
store = open_store(url)
if sys.argv[1] == "gateway":
    app = build_app(Services(Context(store, url), labels=lambda *_: None))
else:
    app = build_mlflow(store)


async def ask():
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://toque") as http:
        for path in ("/healthz", "/ui/oidc/callback?code=SECRET", "/2.0/mlflow/runs/get?access_token=SECRET", "/none", "/models"):
            for method in ("GET", "POST"):
                await http.request(method, path, headers={"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"})


asyncio.run(ask())
for span in exporter.get_finished_spans():
    print(span.name, dict(span.attributes))
"""


@pytest.mark.parametrize("door", ["gateway", "mlflow"])
def test_a_global_provider_of_spans_gets_none_of_a_doors_requests(door: str, tmp_path: object) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SPANS, door, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
