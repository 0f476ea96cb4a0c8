"""Refusals of a door's last moment: they are in the log after every end of its process but a kill."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from tests.ports import free_port
from tests.waiting import until
from toque.functions.prediction_log import LogWriter
from toque.functions.runtime.context import Context
from toque.ray_apps.gateway.app import build_app
from toque.ray_apps.gateway.services import Services
from toque.ray_apps.mlflow import build_app as build_mlflow
from toque.registry import ObjectStore, Registry
from toque.registry.access.audit import newest_first

# Refuses something and ends: at once, by SIGTERM as Ray's workers take it, or while the log's thread has begun to
# write, which the store of this case does not before the main thread is through.
DOOR = """
import signal, sys, threading
from toque.ray_apps.admission.refusals import RefusalLog
from toque.registry import open_store
from toque.registry.store import FolderStore

class Late(FolderStore):
    def create(self, key, data):
        began.set()
        threading.main_thread().join()
        super().create(key, data)

url, end = sys.argv[1:]
began = threading.Event()
store = open_store(url)
log = RefusalLog(Late(store.root) if end == "writing" else store, "gateway", sleep=lambda _: None)
known = "ada" if end == "writing" else None  # whose refusals the thread writes at once
log.record(who=known, status=401, what="GET /x", workspace=None, client="", why="no")
if end == "writing":
    began.wait()
if end == "signal":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("refused", flush=True)
    signal.pause()
"""

# A shell without job control starts its children with SIGINT ignored, and they inherit it.
INTERRUPTIBLE = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
# The gateway with MLflow's protocol beside it in a replica of Serve, which a signal has Serve stop.
SERVED = """
import os, signal, sys, threading
from toque.ray_apps.predictor.__main__ import SERVE_ENVIRONMENT, _cluster, _haproxy_folder

os.environ.update(SERVE_ENVIRONMENT)
stop = threading.Event()
with _haproxy_folder(), _cluster(2):
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    from ray import serve
    from toque.ray_apps.gateway.deployment import application

    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(application({"with_mlflow": True}), name="gateway", route_prefix="/")
    print("ready", flush=True)
    stop.wait()
"""
LONG_AGO = datetime(2024, 1, 1, tzinfo=UTC)
WRONG = {"Authorization": "Bearer nobody's"}


def refused(store: ObjectStore) -> list[str]:
    return [each.what for each in newest_first(store, [], "refusal", since=LONG_AGO)]


@pytest.mark.parametrize("end", ["return", "writing", "signal"])
def test_the_last_refusal_is_written_before_the_process_ends(folder_store: ObjectStore, end: str):
    door = subprocess.Popen(
        [sys.executable, "-c", DOOR, folder_store.url, end],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if end == "signal":
        assert door.stdout is not None
        assert door.stdout.readline() == "refused\n"
        door.terminate()
    assert door.communicate(timeout=120)[1] == ""
    assert (door.returncode, refused(folder_store)) == (0, ["gateway: GET /x"])


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("module", "path"),
    [
        (("toque.ray_apps.generative",), "/v1/models"),
        (("toque.ray_apps.predictor", "--standalone", "smol"), "/v2/models/smol"),
    ],
    ids=["generative", "predictor"],
)
def test_a_door_without_ray_writes_it_when_a_signal_ends_it(
    folder_store: ObjectStore, tmp_path: Path, module: tuple[str, ...], path: str, sent: signal.Signals
):
    Registry(folder_store, actor="ada").create_model("smol")
    port, said = free_port(), tmp_path / "said"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TOQUE_")}
    with said.open("wb") as output:
        door = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTIBLE, *module, "--port", str(port)],
            env=environment | {"TOQUE_STORE": folder_store.url}, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        until(lambda: b"ready\n" in said.read_bytes() or door.poll() is not None, said.read_text)
        assert httpx.get(f"http://127.0.0.1:{port}{path}", headers=WRONG, timeout=120).status_code == 401
        door.send_signal(sent)
        assert (door.wait(120), said.read_text()) == (0, "ready\n")
    finally:
        door.kill()
        door.wait()
    assert len(refused(folder_store)) == 1


def gateway(store: ObjectStore) -> FastAPI:
    return build_app(Services(context=Context(store, store.url), labels=_no_labels))


def _no_labels(workspace: str) -> LogWriter:
    raise AssertionError(workspace)


@pytest.mark.parametrize(
    ("build", "path"), [(gateway, "/models"), (build_mlflow, "/2.0/mlflow/experiments/search")]
)
async def test_an_application_writes_it_at_the_end_of_its_lifespan(
    folder_store: ObjectStore, build: Callable[[ObjectStore], FastAPI], path: str
):
    app = build(folder_store)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://door") as client,
    ):
        answer = await client.get(path, headers=WRONG)
        assert (answer.status_code, refused(folder_store)) == (401, [])
    assert len(refused(folder_store)) == 1


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.slow
def test_a_replica_writes_it_before_serve_kills_it(folder_store: ObjectStore):
    port, paths = free_port(), ["/models", "/api/2.0/mlflow/experiments/search"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TOQUE_")}
    platform = subprocess.Popen(
        [sys.executable, "-c", SERVED, str(port)],
        env=environment | {"TOQUE_STORE": folder_store.url}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert platform.stdout is not None
    try:
        assert any(line == "ready\n" for line in platform.stdout)
        for path in paths:
            answer = httpx.get(f"http://127.0.0.1:{port}{path}", headers=WRONG, timeout=120)
            assert answer.status_code == 401
    finally:
        platform.terminate()
        platform.wait(120)
        platform.stdout.close()
    assert {each.split()[-1] for each in refused(folder_store)} == {*paths}
