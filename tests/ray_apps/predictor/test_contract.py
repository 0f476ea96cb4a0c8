"""Two thousand calls by schemathesis on every serving route of a model's own endpoint and of a pool's: no 500."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from schemathesis import engine

from tests.ray_apps.admissions import patient_admission
from tests.ray_apps.predictor.conftest import SIGNATURE, MemoryLog, load_fake_scorer
from toque.ray_apps.predictor.deploy.deployment import PoolEndpoint
from toque.ray_apps.predictor.deploy.pool import Pool
from toque.ray_apps.predictor.deploy.standalone import EndpointRouter
from toque.ray_apps.predictor.http.auth import TokenAuthenticator
from toque.ray_apps.predictor.http.model_endpoint import ModelEndpoint
from toque.ray_apps.predictor.inference.predictor import Predictor
from toque.ray_apps.predictor.inference.recording import Recorder
from toque.ray_apps.predictor.versions.engine import Engine
from toque.registry import Access, Registry, open_store

SEED = 20130701
PHASES = ("examples", "coverage", "fuzzing", "stateful")
JSON = {"application/json": {"schema": {}}}
TENSOR = {
    "type": "object",
    "required": ["name", "datatype", "shape", "data"],
    "properties": {
        "name": {"enum": ["numeric", "categorical", "other"]},
        "datatype": {"enum": ["FP32", "BYTES", "INT64", "FP16", "BF16"]},
        "shape": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
        "data": {"type": "array", "maxItems": 6},
        "parameters": {"type": "object"},
    },
}
BODY = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "inputs": {"type": "array", "items": TENSOR, "maxItems": 3},
        "outputs": {"type": "array", "items": {"type": "object"}, "maxItems": 2},
        "parameters": {
            "type": "object",
            "properties": {
                "unit": {"type": "string"},
                "entities": {"type": "array", "items": {"type": "object"}, "maxItems": 2},
                "timeout": {"type": "integer"},
            },
        },
    },
}


def operation(method: str, path: str) -> dict[str, Any]:
    """One route as OpenAPI says it: refusals are allowed, faults are not."""
    parameters: list[dict[str, Any]] = []
    if "{model}" in path:
        known = {"enum": ["late", "pooled", "nobody"]}
        parameters.append({"name": "model", "in": "path", "required": True, "schema": known})
    if "{version}" in path:
        numbers = {"type": "integer", "minimum": 0, "maximum": 3}
        parameters.append({"name": "version", "in": "path", "required": True, "schema": numbers})
    found: dict[str, Any] = {
        "parameters": parameters,
        "responses": {"200": {"description": "", "content": JSON}},
    }
    if method == "post":
        timeout = {"type": "string", "maxLength": 6}
        parameters.append({"name": "X-Request-Timeout-Ms", "in": "header", "schema": timeout})
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": BODY}}}
    return {method: found}


def document() -> dict[str, Any]:
    model = "/v2/models/{model}"
    looks = ["", "/ready", "/stats", "/config"]
    routes = [
        f"{model}/status",
        *(f"{root}{look}" for look in looks for root in (model, f"{model}/versions/{{version}}")),
    ]
    paths = {path: operation("get", path) for path in [*routes, "/v2/models/"]}
    for path in (f"{model}/infer", f"{model}/versions/{{version}}/infer"):
        paths[path] = operation("post", path)
    return {"openapi": "3.1.0", "info": {"title": "serving", "version": "1"}, "paths": paths}


def build_app(folder: Path) -> tuple[Any, str]:
    """A model with its own endpoint and one in a pool, and a token that may predict."""
    store = open_store(f"file://{folder}/store")
    registry = Registry(store, actor="ada")
    (folder / "artifact").mkdir()
    (folder / "artifact" / "model.json").write_text(json.dumps({"value": 0.25}))
    for model in ("late", "pooled"):
        registry.create_model(model)
        for _ in range(2):
            registry.create_version(model, path=folder / "artifact", signature=SIGNATURE)
        registry.promote(model, 1)
    auth = TokenAuthenticator(patient_admission(Access(store, actor="predictor")))

    def endpoint(model: str) -> ModelEndpoint:
        engine = Engine(
            model, Registry(store, actor="predictor"), load_fake_scorer, scratch=folder / "loading"
        )
        return ModelEndpoint(Predictor(engine, Recorder(model, MemoryLog())), auth)

    own = endpoint("late")
    own.predictor.engine.follow_once()
    own.predictor.engine.load_wanted()
    pool: PoolEndpoint | None = None
    serve: Any = None

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal pool, serve
        if pool is None:  # a pool belongs to the loop that it is used in
            pool = PoolEndpoint(Pool(endpoint, limit_bytes=1 << 30), auth)
            serve = EndpointRouter({"late": own, "": pool}, auth)
        if scope["type"] == "lifespan":
            await pool(scope, receive, send)
        else:
            await serve(scope, receive, send)

    return app, Access(store, actor="root").create_token("fuzz", "predictor")


def fuzz(app: Any, token: str, examples: int, phases: list[str]) -> tuple[Counter[int], list[str]]:
    """Call it all; returns how many answers had which status, and the requests that were answered by a fault."""
    config = schemathesis.Config.from_dict(
        {
            "seed": SEED,
            "headers": {"Authorization": f"Bearer {token}"},
            "continue-on-failure": True,
            "cache": {"enabled": False},
            "suppress-health-check": ["all"],
            "generation": {"database": "none", "max-examples": examples},
            "checks": {"enabled": False},
            "phases": {each: {"enabled": each in phases} for each in PHASES},
        }
    )
    schema = schemathesis.openapi.from_dict(document(), config=config)
    schema.app = app
    statuses: Counter[int] = Counter()
    found: list[str] = []
    for event in engine.from_schema(schema).execute():
        if isinstance(event, engine.events.NonFatalError | engine.events.FatalError):
            found.append(str(event))
        if isinstance(event, engine.events.ScenarioFinished):
            for case, interaction in event.recorder.interactions.items():
                status = interaction.response.status_code if interaction.response else 599
                statuses[status] += 1
                asked = event.recorder.cases[case].value
                if status >= 500 and not _said(asked, status):
                    found.append(f"{asked.as_curl_command()}: {status}")
    return statuses, found


def _said(asked: Any, status: int) -> bool:
    """Whether a 5xx is no fault but an answer: not ready, or later than the caller wanted to wait."""
    late = status == 504 and "X-Request-Timeout-Ms" in (asked.headers or {})
    return late or (status == 503 and asked.path.endswith("/ready"))


@pytest.mark.parametrize(
    ("examples", "phases", "at_least"),
    [
        pytest.param(8, ["fuzzing"], 40, id="short"),
        pytest.param(400, ["coverage", "fuzzing"], 2_000, id="two-thousand", marks=pytest.mark.proof),
    ],
)
def test_no_request_to_a_serving_route_is_answered_by_a_fault(
    tmp_path: Path, examples: int, phases: list[str], at_least: int
):
    app, token = build_app(tmp_path)
    statuses, found = fuzz(app, token, examples, phases)
    assert not found, "\n".join(found)
    assert sum(statuses.values()) >= at_least
    assert {200, 400, 404} <= statuses.keys()
    sys.stdout.write(f"{sum(statuses.values())} requests, by status: {dict(sorted(statuses.items()))}\n")
