"""A gateway of a store, served from a thread of the test, for clients that speak HTTP to an address."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from toque.functions.prediction_log import LogWriter, default_wal_root
from toque.functions.runtime.context import Context
from toque.ray_apps.gateway.app import build_app
from toque.ray_apps.gateway.services import Services
from toque.registry import open_store


@contextmanager
def gateway_of(store_url: str, redis_url: str) -> Iterator[str]:
    """Serve the gateway on a free port of loopback; yields its address."""
    context = Context(open_store(store_url), store_url, redis_url=redis_url, actor="platform")
    labels = LogWriter(default_wal_root(store_url), "labels", redis_url)
    app = build_app(Services(context=context, labels=lambda _: labels))
    config = uvicorn.Config(app, port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    listening = config.bind_socket()
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        labels.close()
