"""Pages of the console over a store of size: how long until a browser paints each, and how many bytes it loads.

Writes the store into `--store` if it is not there (a quarter of an hour), serves the gateway without Ray on this machine, and opens each page in
Chromium: once for the first time in the process, then again. The floor is the sign-in page, which reads nothing. Before, costs are summed as
the platform does every ten minutes. Beside the time stand the CPU seconds of the gateway's processes, which other work on the machine
changes little. Exit code 1 if a page took longer than `--limit` seconds when it was opened again.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import psutil

from toque.load.benchmarks.console.store import MODEL, Size, filled_store
from toque.load.benchmarks.harness import NotPossible, Stopwatch, bound, main, say, temporary
from toque.load.benchmarks.servers import asgi_server
from toque.registry import Access

FLOOR = "/ui/sign-in"
PAGES = f"""
/ui/ /ui/models /ui/models/{MODEL} /ui/models/{MODEL}/versions/2 /ui/models/{MODEL}/compare?version=2&version=3
/ui/traffic /ui/traffic/{MODEL} /ui/rollouts /ui/monitors /ui/monitors/{MODEL} /ui/predictions?model={MODEL}
/ui/features /ui/experiments /ui/experiments/experiment-00
/ui/experiments/experiment-00?where=metrics.auc+%3E+0.4&order_by=metrics.valid_loss+ASC
/ui/functions /ui/invocations /ui/invocations?state=dead /ui/invocations?function=count_flights /ui/queue
/ui/costs /ui/costs?days=30&by=model /ui/reports /ui/audit /ui/tokens
""".split()
_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
_BYTES = "performance.getEntries().reduce((sum, each) => sum + (each.encodedBodySize || 0), 0)"


def run(
    *,
    store: Annotated[Path | None, "folder, written if it is not there; by default a temporary one"] = None,
    part: Annotated[float, "share of the size, for a try"] = 1.0,
    rounds: Annotated[int, "times that a page is opened again"] = 5,
    limit: Annotated[float, "seconds to the first paint"] = 1.0,
) -> None:
    """Measure every page, and hold the slowest to its bound."""
    with temporary() as folder:  # the gateway begins in it: it lacks what a development folder may have
        filled = filled_store((store or folder / "store").resolve(), Size().share(part))
        say(f"store: {(filled.find('written') or b'').decode()}")
        token = Access(filled, actor="benchmark").create_token(f"admin-{time.time_ns()}", "admin")
        own = {"TOQUE_STORE": filled.url}
        build = "toque.ray_apps.gateway.deployment:build"
        with asgi_server(build, folder, "--factory", environment=own) as (url, child), _browser() as browser:
            watch, headers = Stopwatch(), {"Authorization": f"Bearer {token}"}
            summed = httpx.post(f"{url}/functions/sum_costs", json={}, headers=headers, timeout=3600)
            say(f"costs of {summed.raise_for_status().json()} invocations summed in {watch.wall_s:.0f} s")
            page = browser.new_page(base_url=url)
            page.set_default_timeout(600_000)
            page.goto("/ui/")
            page.fill("#token", token)
            page.click("text=Sign in >> nth=-1")
            page.wait_for_selector(".side")
            again = {path: _opened(page, path, child.pid, rounds) for path in (FLOOR, *PAGES)}
    slowest = max(again, key=lambda path: again[path])
    bound(f"seconds of the slowest page when opened again, {slowest}", again[slowest], most=limit)


def _opened(page: Any, path: str, session: int, rounds: int) -> float:
    """Open a page, and again; prints both and returns the median seconds until it painted when it was opened again."""
    seconds, cpu = [], []
    for _ in range(rounds + 1):
        before = _cpu_s(session)
        answer = page.goto(path)
        if answer.status >= 400:
            raise RuntimeError(f"{path} answered {answer.status}: {page.inner_text('main')[:400]}")
        while (painted_ms := page.evaluate(_PAINT)) is None:  # a wait by a script would need `unsafe-eval`
            page.wait_for_timeout(5)
        seconds.append(painted_ms / 1000)
        cpu.append(_cpu_s(session) - before)
    again_s, cpu_s, size = np.median(seconds[1:]), np.median(cpu[1:]), int(page.evaluate(_BYTES))
    say(
        f"{path:<90} first {seconds[0]:6.2f} s, again {again_s:6.2f} s, {cpu_s:6.2f} s of CPU, {size / 1000:6.0f} kB"
    )
    return float(again_s)


def _cpu_s(session: int) -> float:
    """CPU seconds that the processes of a session have used, those included that ended and were waited for."""
    used_s = 0.0
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):  # it has just ended
            if os.getsid(process.pid) == session:
                used_s += sum(process.cpu_times()[:4])
    return used_s


@contextmanager
def _browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright  # late: only where there is a browser

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        raise NotPossible("no Chromium here; `apt-get install chromium` brings one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


if __name__ == "__main__":
    main(run)
