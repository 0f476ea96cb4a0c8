"""A Prometheus and an Alertmanager with the platform's own rules and routes, and who is told what by them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.ports import free_port

MONITORING = Path(__file__).resolve().parents[3] / "clusters" / "monitoring"
PROGRAMS = ("prometheus", "prometheus-alertmanager")


class Told:
    """Receiver of Alertmanager's webhooks: what fires and what was ever told, by name of the alert."""

    def __init__(self) -> None:
        self.firing: set[str] = set()
        self.ever: set[str] = set()
        self.alertmanager = ""
        told = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                told.take(body["alerts"])
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def take(self, alerts: list[dict[str, Any]]) -> None:
        """Note a notification."""
        for alert in alerts:
            name = alert["labels"]["alertname"]
            if alert["status"] == "firing":
                self.firing = self.firing | {name}
                self.ever = self.ever | {name}
            else:
                self.firing = self.firing - {name}

    def held_back(self) -> set[str]:
        """Names of the alerts that fire and that nobody is told of, as their cause stands."""
        found = httpx.get(f"http://{self.alertmanager}/api/v2/alerts").json()
        return {each["labels"]["alertname"] for each in found if each["status"]["inhibitedBy"]}

    def begin(self) -> None:
        """Forget what was told before."""
        self.ever = set(self.firing)


@contextmanager
def watch(folder: Path, *, door: str, haproxy: str, token: str) -> Iterator[Told]:
    """Run both programs on a platform. door, haproxy: host and port of its series; token: that may read them.

    Only ports, files and the time between two scrapes differ from the files in `clusters/monitoring`.
    """
    told = Told()
    with ExitStack() as running:
        running.callback(told.server.shutdown)
        told.alertmanager = alertmanager = f"127.0.0.1:{free_port()}"
        routes = yaml.safe_load((MONITORING / "alertmanager.yaml").read_text())
        routes["route"] |= {"group_interval": "2s", "group_wait": "2s"}
        for receiver in routes["receivers"]:
            for hook in receiver["webhook_configs"]:
                file = folder / Path(hook["url_file"]).name
                file.write_text(told.url)
                hook["url_file"] = str(file)
        (folder / "alertmanager.yaml").write_text(yaml.safe_dump(routes))
        _run(
            running, folder, "prometheus-alertmanager", f"--config.file={folder}/alertmanager.yaml",
            f"--storage.path={folder}/alertmanager", f"--web.listen-address={alertmanager}",
            "--cluster.listen-address=",
        )  # fmt: skip
        shutil.copytree(MONITORING / "prometheus" / "rules", folder / "rules")
        scrapes = yaml.safe_load((MONITORING / "prometheus" / "one-machine.yaml").read_text())
        scrapes["global"] = {"scrape_interval": "3s", "scrape_timeout": "3s", "evaluation_interval": "3s"}
        scrapes["alerting"]["alertmanagers"][0]["static_configs"] = [{"targets": [alertmanager]}]
        (folder / "token").write_text(token)
        for job, target in zip(scrapes["scrape_configs"], (door, haproxy), strict=True):
            job["static_configs"] = [{"targets": [target]}]
            if "authorization" in job:
                job["authorization"] = {"credentials_file": str(folder / "token")}
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(scrapes))
        _run(
            running, folder, "prometheus", f"--config.file={folder}/prometheus.yaml",
            f"--storage.tsdb.path={folder}/prometheus", f"--web.listen-address=127.0.0.1:{free_port()}",
        )  # fmt: skip
        until(lambda: "Watchdog" in told.firing, within_s=120)
        yield told


def _run(running: ExitStack, folder: Path, *command: str) -> None:
    with (folder / f"{command[0]}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)

    def end() -> None:
        process.send_signal(signal.SIGTERM)
        process.wait(60)

    running.callback(end)


def until(condition: Callable[[], object], *, within_s: float) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.1)
