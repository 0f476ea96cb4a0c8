"""Pages of the console over a store of size: how long until a browser paints each, and how many bytes it loads.

`python -m toque.load.benchmarks.console.pages --store FOLDER` writes the store into FOLDER if it is not there (some minutes), serves the
gateway without Ray on this machine, and opens each page in Chromium: once for the first time in the process, then again. The
floor is the sign-in page, which reads nothing. Before, costs are summed as the platform does every hour. Beside the time stand the CPU
seconds of the gateway's processes, which other work on the machine changes little. Exit code 1 if a page took longer than `--limit`
seconds when it was opened again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from toque.load.benchmarks.console.store import MODEL, Size, filled_store
from toque.load.benchmarks.timing import print_machine
from toque.registry import Access, ObjectStore

FLOOR = "/ui/sign-in"
PAGES = (
    "/ui/",
    "/ui/models",
    f"/ui/models/{MODEL}",
    f"/ui/models/{MODEL}/versions/2",
    f"/ui/models/{MODEL}/compare?version=2&version=3",
    "/ui/traffic",
    f"/ui/traffic/{MODEL}",
    "/ui/rollouts",
    "/ui/monitors",
    f"/ui/monitors/{MODEL}",
    f"/ui/predictions?model={MODEL}",
    "/ui/features",
    "/ui/experiments",
    "/ui/experiments/experiment-00",
    "/ui/experiments/experiment-00?where=metrics.auc+%3E+0.4&order_by=metrics.valid_loss+ASC",
    "/ui/functions",
    "/ui/invocations",
    "/ui/invocations?state=dead",
    "/ui/invocations?function=count_flights",
    "/ui/queue",
    "/ui/costs",
    "/ui/costs?days=30&by=model",
    "/ui/reports",
    "/ui/audit",
    "/ui/tokens",
)
_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
_BYTES = "performance.getEntries().reduce((sum, each) => sum + (each.encodedBodySize || 0), 0)"


@dataclass(frozen=True, slots=True)
class Opened:
    """Seconds until a page painted, for the first time and when it was opened again, and the bytes that it loaded.

    cpu_s: of the gateway, when it was opened again.
    """

    path: str
    first_s: float
    again_s: float
    cpu_s: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Gateway:
    """Address of a running gateway and an admin's token. session: number of its processes' session."""

    url: str
    token: str
    session: int

    def cpu_s(self) -> float:
        """CPU seconds that its processes have used, those included that ended and were waited for."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it has just ended
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.session:
                    ticks += sum(map(int, fields[11:15]))
        return ticks / os.sysconf("SC_CLK_TCK")


def main(arguments: list[str]) -> int:
    """Measure every page; returns the exit code."""
    given = _parsed(arguments)
    store = filled_store(given.store.resolve(), Size().share(given.part))
    print_machine()
    print(f"store: {(store.find('written') or b'').decode()}")
    print(f"{'page':<90} {'first s':>8} {'again s':>8} {'cpu s':>6} {'kB':>6}")
    slow = []
    with _served(store) as gateway, _browser() as browser:
        _sum_costs(gateway)
        page = browser.new_page()
        page.set_default_timeout(600_000)
        page.goto(f"{gateway.url}/ui/")
        page.fill("#token", gateway.token)
        page.click("text=Sign in >> nth=-1")
        page.wait_for_selector(".side")
        for path in (FLOOR, *PAGES):
            opened = _open(page, gateway, path, given.rounds)
            print(
                f"{path:<90} {opened.first_s:>8.2f} {opened.again_s:>8.2f} {opened.cpu_s:>6.2f} "
                f"{opened.size_bytes / 1000:>6.0f}",
                flush=True,
            )
            if opened.again_s > given.limit:
                slow.append(path)
    print(f"longer than {given.limit:g} s when opened again: {', '.join(slow) or 'none'}")
    return 1 if slow else 0


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--store", type=Path, required=True, help="folder of the store, written if it is not there"
    )
    parser.add_argument("--part", type=float, default=1.0, help="share of the size, for a try")
    parser.add_argument("--rounds", type=int, default=5, help="times that a page is opened again")
    parser.add_argument("--limit", type=float, default=1.0, help="seconds to the first paint")
    return parser.parse_args(arguments)


def _sum_costs(gateway: _Gateway) -> None:
    start = time.perf_counter()
    headers = {"Authorization": f"Bearer {gateway.token}"}
    answer = httpx.post(f"{gateway.url}/functions/sum_costs", json={}, headers=headers, timeout=3600)
    print(
        f"costs of {answer.raise_for_status().json()} invocations summed in {time.perf_counter() - start:.0f} s"
    )


def _open(page: Any, gateway: _Gateway, path: str, rounds: int) -> Opened:
    seconds, cpu = [], []
    for _ in range(rounds + 1):
        before = gateway.cpu_s()
        answer = page.goto(gateway.url + path)
        if answer.status >= 400:
            raise RuntimeError(f"{path} answered {answer.status}: {page.inner_text('main')[:400]}")
        while (painted_ms := page.evaluate(_PAINT)) is None:  # a wait by a script would need `unsafe-eval`
            page.wait_for_timeout(5)
        seconds.append(painted_ms / 1000)
        cpu.append(gateway.cpu_s() - before)
    again_s, cpu_s = statistics.median(seconds[1:]), statistics.median(cpu[1:])
    return Opened(path, seconds[0], again_s, cpu_s, int(page.evaluate(_BYTES)))


@contextmanager
def _served(store: ObjectStore) -> Iterator[_Gateway]:
    """Serve the gateway in a process of its own, without Ray and Redis; gives its address and an admin's token."""
    token = Access(store, actor="benchmark").create_token(f"admin-{time.time_ns()}", "admin")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ("--factory", "--host", "127.0.0.1", "--port", str(port), "--log-level", "error")
    command = [sys.executable, "-m", "uvicorn", "toque.ray_apps.gateway.deployment:build", *options]
    with tempfile.TemporaryDirectory() as folder:  # which lacks what a development folder may have
        environment = os.environ | {"TOQUE_STORE": store.url, "PYTHONPATH": str(Path.cwd())}
        process = subprocess.Popen(command, env=environment, cwd=folder, start_new_session=True)
        try:
            while not _answers(port):
                if process.poll() is not None:
                    raise RuntimeError(f"the gateway ended with {process.returncode}")
                time.sleep(0.1)
            yield _Gateway(f"http://127.0.0.1:{port}", token, process.pid)
        finally:
            process.terminate()
            process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright  # late: only where there is a browser

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        raise RuntimeError("no Chromium here; `apt-get install chromium` brings one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
