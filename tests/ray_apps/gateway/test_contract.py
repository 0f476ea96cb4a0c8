"""Conformance with the OpenAPI document: schemathesis calls every operation; no response is 5xx or undocumented.

Real stores: a folder and a redis-server; real functions: the platform's own, in threads and child processes.
"""

from collections.abc import Callable, Collection, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from schemathesis import engine

from tests.redis_server import running_redis
from toque.featurestore import Entity, FeatureView, Field, Float64, String
from toque.functions.prediction_log import LogWriter
from toque.functions.runtime import catalog
from toque.functions.runtime.context import Context
from toque.ray_apps.discovery import discover
from toque.ray_apps.gateway.app import build_app
from toque.ray_apps.gateway.services import Services
from toque.registry import Access, ModelPolicy, Registry, open_store

SEED = 20130701
PHASES = ("examples", "coverage", "fuzzing", "stateful")


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    with running_redis(tmp_path / "redis") as server:
        yield server.url


@pytest.fixture
def context(tmp_path: Path, redis_url: str) -> Context:
    """A context whose store has a model of three versions and a feature view."""
    url = f"file://{tmp_path / 'store'}"
    context = Context(open_store(url), url, redis_url=redis_url, actor="platform")
    registry = Registry(context.store, actor="trainer")
    registry.create_model("late", policy=ModelPolicy(guarded=frozenset({"champion"})))
    weights = tmp_path / "files"
    weights.mkdir()
    (weights / "weights.bin").write_bytes(b"1")
    for _ in range(3):
        registry.create_version("late", weights, metrics={"log_loss": 0.4})
    airport = Entity("airport", join_keys=["airport"])
    fields = [Field("wind", Float64), Field("sky", String)]
    context.features().apply(
        [FeatureView("weather", entities=[airport], schema=fields, ttl=timedelta(days=1))]
    )
    return context


@pytest.fixture
def declare_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], bool]], None]:
    """Hide all functions but those whose references a test accepts."""

    def chosen(wanted: Callable[[str], bool]) -> None:
        declared = {
            name: {reference: each for reference, each in named.items() if wanted(reference)}
            for name, named in catalog._declared.items()
        }
        monkeypatch.setattr(catalog, "_declared", {name: named for name, named in declared.items() if named})

    return chosen


@pytest.fixture
def document(context: Context, tmp_path: Path) -> Iterator[Any]:
    token = Access(context.store, actor="tests").create_token("fuzz", "admin")
    opened: list[LogWriter] = []

    def labels(_: str) -> LogWriter:
        opened.append(LogWriter(tmp_path / "wal", "labels", str(context.redis_url)))
        return opened[-1]

    services = Services(context=context, labels=labels, wait_s=20)

    def load(examples: int, *, phases: Collection[str]) -> Any:
        headers = {"Authorization": f"Bearer {token}"}
        config = schemathesis.Config.from_dict(
            {
                "seed": SEED,
                "headers": headers,
                "continue-on-failure": True,
                "cache": {"enabled": False},
                "suppress-health-check": ["all"],
                "request-timeout": 120,  # a first call imports its function's module
                "checks": {
                    "use_after_free": {"enabled": False}
                },  # DELETE cancels an invocation; its record stays
                "generation": {"database": "none", "max-examples": examples},
                "phases": {each: {"enabled": each in phases} for each in PHASES},
            }
        )
        return schemathesis.openapi.from_asgi(
            "/openapi.json", build_app(services), config=config, headers=headers
        )

    yield load
    for each in opened:
        each.close()


def fuzz(schema: Any) -> tuple[int, list[str]]:
    """Call every operation; returns the number of requests, and what schemathesis found."""
    called, found = 0, []
    for event in engine.from_schema(schema).execute():
        if isinstance(event, engine.events.NonFatalError | engine.events.FatalError):
            found.append(str(event))
        if isinstance(event, engine.events.ScenarioFinished):
            called += len(event.recorder.interactions)
            found += _failures(event.recorder)
    return called, found


def _failures(recorder: Any) -> list[str]:
    return [
        f"{recorder.cases[case].value.as_curl_command()}\n{check.name}: {check.failure_info.failure}\n"
        for case, checks in recorder.checks.items()
        for check in checks
        if check.failure_info is not None
    ]


def test_a_hundred_requests_find_no_5xx_and_no_undocumented_response(
    document: Any, sample_functions: None, declare_only: Any
) -> None:
    declare_only({"gateway_samples:gateway_add", "gateway_samples:gateway_refuse"}.__contains__)
    called, found = fuzz(document(3, phases=["fuzzing"]))
    assert not found, "\n".join(found)
    assert called >= 100


@pytest.mark.proof
@pytest.mark.parametrize(
    ("examples", "phases", "prefix"),
    [
        pytest.param(
            3, ["coverage", "fuzzing", "stateful"], "toque.functions.rollout.", id="one-package-every-phase"
        ),
        pytest.param(14, ["fuzzing"], "toque.functions.", id="every-package"),
    ],
)
def test_a_thousand_requests_find_no_5xx_and_no_undocumented_response(
    document: Any, sample_functions: None, declare_only: Any, examples: int, phases: list[str], prefix: str
) -> None:
    discover((), awaited=False)
    declare_only(lambda reference: reference.startswith((prefix, "gateway_samples:gateway_add")))
    called, found = fuzz(document(examples, phases=phases))
    assert not found, "\n".join(found)
    assert called >= 1000
