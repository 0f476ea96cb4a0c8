"""Two Serve applications behind HAProxy, at `/` and at `/other`, of which the tests kill parts; prints `ready`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve

app = FastAPI()


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0})
@serve.ingress(app)
class Echo:
    """Answers with the pid of its process."""

    @app.get("/pid")
    async def pid(self) -> int:
        return os.getpid()


def main() -> None:
    """Serve until a signal."""
    stop = threading.Event()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    places = {"front": "/", "other": "/other"}
    echo: Any = Echo
    serve.run_many([serve.RunTarget(echo.bind(), name, prefix) for name, prefix in places.items()])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    stop.wait()
    ray.shutdown()


if __name__ == "__main__":
    main()
