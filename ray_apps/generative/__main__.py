"""Serve the language models of a store from this process alone, without Ray: to try one out, or to measure it.

python -m toque.ray_apps.generative --port 8000    (store, Redis and workspaces are those of the environment)

It prints `ready` once clients can connect, and ends with its engines on SIGINT or SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
import uvloop

from toque.ray_apps.generative.build import build_door
from toque.ray_apps.generative.options import ROUTE_PREFIX, GenerativeOptions
from toque.ray_apps.predictor.http.endpoint import Endpoint

__all__ = ["mounted"]


def main() -> None:
    """Serve until a signal ends it."""
    parser = argparse.ArgumentParser(prog="python -m toque.ray_apps.generative", allow_abbrev=False)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--threads", type=int, help="of each engine (default: all cores)")
    given = parser.parse_args()
    uvloop.run(  # as Ray's replicas have it
        _serve(GenerativeOptions.from_environment(os.environ, engine_threads=given.threads), given.port)
    )


def mounted(door: Endpoint) -> Callable[[Any, Any, Any], Awaitable[None]]:
    """Mount a door at its route prefix, as Serve does."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope["root_path"] = ROUTE_PREFIX
        await door(scope, receive, send)

    return application


async def _serve(options: GenerativeOptions, port: int) -> None:
    door = build_door(options)
    config = uvicorn.Config(
        mounted(door), port=port, ws="none", lifespan="off", log_level="warning", access_log=False,
        proxy_headers=False,
    )  # fmt: skip
    listening = config.bind_socket()
    listening.listen()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn ends by it, and then raises it once more
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    try:
        await uvicorn.Server(config).serve(sockets=[listening])
    finally:
        await door.close()


if __name__ == "__main__":
    main()
