"""The door of language models as a Serve application behind HAProxy: PORT OPTIONS; prints `ready`, and ends by a signal.

The store is that of the environment. OPTIONS: of the door, as JSON, beside those of every test.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai

from tests.ports import free_port
from toque.ray_apps.predictor.__main__ import SERVE_ENVIRONMENT, _cluster, _haproxy_folder
from toque.registry import Access, ObjectStore

REPLICA = b"ray::ServeReplica:generative"


@contextlib.contextmanager
def served_door(store: ObjectStore, **options: Any) -> Iterator[openai.OpenAI]:
    """OpenAI's client of a door in a Ray of its own. options: of the door, beside those of every test."""
    token = Access(store, actor="root").create_token("caller", "caller")
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TOQUE_")}
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.ray_apps.generative.served", str(port), json.dumps(options)],
        env=environment | {"TOQUE_STORE": store.url}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    try:
        assert any(line == "ready\n" for line in server.stdout)
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=token, timeout=120, max_retries=9)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
        server.stdout.close()


def pids(store: ObjectStore, command: bytes) -> list[int]:
    """Processes of a served door with this in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            is_ours = store.url.encode() in (folder / "environ").read_bytes()
            if is_ours and command in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def main() -> None:
    """Serve until a signal."""
    stop = threading.Event()
    with _haproxy_folder(), _cluster(2):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        from ray import serve  # late: Serve's settings must be in the environment first

        from toque.ray_apps.config.builders import generative
        from toque.ray_apps.generative.options import APP, ROUTE_PREFIX

        serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
        options = {"num_cpus": 0, "engine_threads": 1, **json.loads(sys.argv[2])}
        serve.run(generative({"options": options}), name=APP, route_prefix=ROUTE_PREFIX)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        stop.wait()


if __name__ == "__main__":
    os.environ.update(SERVE_ENVIRONMENT)
    main()
