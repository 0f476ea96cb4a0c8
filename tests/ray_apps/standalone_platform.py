"""The platform of `flights_driver` without Ray: a standalone predictor serves HTTP, functions run in this process.

Store, Redis and journals are real.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.ports import free_port
from tests.ray_apps.flights_driver import MAY, MODEL, Driver
from tests.redis_server import RedisServer
from tests.waiting import until
from toque.functions.prediction_log import Label, LogWriter, default_wal_root, encode_labels
from toque.functions.runtime import catalog
from toque.functions.runtime.changes import Announcer
from toque.functions.runtime.clock import ReplayClock
from toque.functions.runtime.context import Context, use_context
from toque.registry import Access, Registry, open_store


@dataclass(frozen=True)
class Server:
    """Address and token of a standalone predictor."""

    url: str
    secret: str

    def token(self) -> str:
        """Bearer token of a caller who may infer."""
        return self.secret


class StandaloneDriver(Driver):
    """A driver that calls functions in this process."""

    context: Context
    labels: LogWriter

    def function(self, name: str, /, **arguments: Any) -> Any:
        """Call a function of the platform in this process."""
        with use_context(self.context):
            return catalog.get(name).call_json(arguments)

    def label(self, known: Sequence[tuple[str, float]]) -> None:
        """Send labels of predictions by their ids."""
        if known:
            rows = [Label(name, label, observed_at=self.now, received_at=self.now) for name, label in known]
            self.labels.append(encode_labels(rows))
        self.labelled += len(known)


@contextmanager
def standalone_platform(folder: Path) -> Iterator[StandaloneDriver]:
    """Start Redis and a standalone predictor; yields their driver, and ends them."""
    (folder / "redis").mkdir()
    redis = RedisServer(folder / "redis")
    redis.start()
    store = open_store(f"file://{folder}/store", announce=Announcer(redis.url))
    Registry(store, actor="ada").create_model(MODEL)
    clock = ReplayClock(redis.url)
    clock.set(MAY)
    variables = {"TOQUE_STORE": store.url, "TOQUE_REDIS_URL": redis.url, "TOQUE_CLOCK": "replay"}
    server = Server(
        f"http://127.0.0.1:{free_port()}", Access(store, actor="ada").create_token("t", "predictor")
    )
    command = [
        sys.executable,
        "-m",
        "toque.ray_apps.predictor",
        "--standalone",
        "--port",
        server.url.rpartition(":")[2],
    ]
    with (folder / "log").open("wb") as log:
        predictor_process = subprocess.Popen(
            [*command, MODEL], stdout=log, stderr=subprocess.STDOUT, env=os.environ | variables
        )
    labels = LogWriter(default_wal_root(store.url), "labels", redis.url)
    try:
        until(lambda: b"ready\n" in (folder / "log").read_bytes(), within_s=120)
        catalog.discover()
        driver = StandaloneDriver(server, Registry(store, actor="ada"), clock, folder)
        driver.labels = labels
        driver.context = Context(
            store=store, store_url=store.url, redis_url=redis.url, clock=clock, actor="ada"
        )
        yield driver
    finally:
        labels.close()
        predictor_process.send_signal(signal.SIGKILL)
        predictor_process.wait()
        redis.kill()
