"""Two Serve applications behind HAProxy, at `/` and at `/other`, of which the tests kill parts.

Prints `ready`. After SIGHUP it deploys both again, as of a new release, and prints `deployed`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve

from toque.ray_apps.serve.spread import laid_out

app = FastAPI()


@serve.deployment(**laid_out({"num_replicas": 1, "ray_actor_options": {"num_cpus": 0}}))
@serve.ingress(app)
class Echo:
    """Answers with the pid of its process."""

    @app.get("/pid")
    async def pid(self) -> int:
        return os.getpid()


def main() -> None:
    """Serve until a signal."""
    stop, again = threading.Event(), threading.Event()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    signal.signal(signal.SIGHUP, lambda *_: again.set())
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    deploy("ready")
    while not stop.wait(0.1):
        if again.is_set():
            again.clear()
            deploy("deployed")
    ray.shutdown()


def deploy(said: str) -> None:
    """Deploy both applications, and say so when they run."""
    places = {"front": "/", "other": "/other"}
    echo: Any = Echo
    serve.run_many([serve.RunTarget(echo.bind(), name, prefix) for name, prefix in places.items()])
    sys.stdout.write(f"{said}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
