"""What watches the platform that fills every panel: a Prometheus with the rules of `toque.clusters.monitoring`."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import yaml

from toque.load.benchmarks.serving.throughput import free_port

__all__ = ["NotWatched", "watched"]

_SCRAPES = Path(__file__).resolve().parents[2] / "clusters" / "monitoring" / "prometheus"
_EVERY = "5s"
_START_S = 60.0


class NotWatched(Exception):  # noqa: N818 - a state of the world, said to a person
    """Raised where Prometheus is not there or does not start."""


@contextlib.contextmanager
def watched(folder: Path, *, door: str, haproxy: str, token: str) -> Iterator[str]:
    """Run a Prometheus on a platform, and yield its URL. door, haproxy: host and port of their series; token: that may read them.

    Only ports, files and the time between two scrapes differ from `clusters/monitoring/prometheus/one-machine.yaml`.
    Raises: NotWatched.
    """
    program = shutil.which("prometheus")
    if program is None:
        raise NotWatched("prometheus is not on the PATH: apt-get install prometheus")
    folder.mkdir(parents=True)
    (folder / "token").write_text(token)
    config = yaml.safe_load((_SCRAPES / "one-machine.yaml").read_text())
    config["global"] = {"scrape_interval": _EVERY, "scrape_timeout": _EVERY, "evaluation_interval": _EVERY}
    config["rule_files"] = [str(_SCRAPES / "rules" / "*.yaml")]
    del config["alerting"]
    for job, target in zip(config["scrape_configs"], (door, haproxy), strict=True):
        job["static_configs"] = [{"targets": [target]}]
        if "authorization" in job:
            job["authorization"] = {"credentials_file": str(folder / "token")}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        program, f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/series",
        f"--web.listen-address={address}",
    ]  # fmt: skip
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)  # Debian's program
    try:
        _wait_ready(process, f"http://{address}", folder / "prometheus.log")
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(_START_S)


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        with contextlib.suppress(OSError), urlopen(f"{url}/-/ready", timeout=5) as answer:  # noqa: S310  # our own
            if answer.status == 200:  # HTTP's
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise NotWatched(f"prometheus does not start:\n{log.read_text()[-2_000:]}")
        time.sleep(0.2)
