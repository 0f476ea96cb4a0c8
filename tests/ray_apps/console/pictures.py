"""Pictures of the pages for the documentation, of the sample platform that the tests open.

`python -m tests.ray_apps.console.pictures docs/console` writes them all; names after the folder choose some.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import redis
from PIL import Image

from tests.ray_apps.console.browser import CHROMIUM, PHONE, Served, person, serve
from tests.ray_apps.console.conftest import make_platform
from tests.ray_apps.console.sample_features import SOURCE, VIEW, fill_features
from tests.ray_apps.console.sample_monitors import fill_monitors
from tests.ray_apps.console.sample_platform import MODEL, NOW, answer_requests, begin_rollout, fill
from tests.ray_apps.console.sample_predictions import fill_predictions
from tests.ray_apps.console.sample_runs import RUNS, fill_runs
from tests.ray_apps.console.sample_work import WORK, Work, fill_work
from tests.redis_server import RedisServer
from toque.featurestore import FeatureStore
from toque.functions import Demand, function
from toque.functions.quotas import set_quota
from toque.functions.runtime.context import use_context
from toque.registry import open_store


@dataclass(frozen=True, slots=True)
class Picture:
    """Page that is pictured. height: of the picture at most, in pixels; to: part of the page that is scrolled to; by: whose session."""

    name: str
    path: str
    height: int
    dark: bool = False
    width: int = 1120
    to: str = ""
    by: str = "admin"


_COMPARED = "&".join(f"run={each}" for each in RUNS)
PICTURES = (
    Picture("sign-in", "/ui/sign-in", 420, by=""),
    Picture("home", "/ui/", 1200),
    Picture("models", "/ui/models", 420),
    Picture("model", f"/ui/models/{MODEL}", 1000),
    Picture("version", f"/ui/models/{MODEL}/versions/5", 1000),
    Picture("lineage", f"/ui/models/{MODEL}/versions/4", 300, width=1280, to="text=From data to predictions"),
    Picture("compare", f"/ui/models/{MODEL}/compare?version=3&version=5", 700),
    Picture("playground", f"/docs#default/{MODEL}", 700, by="operator"),
    Picture("approvals", "/ui/approvals", 380),
    Picture("traffic-list", "/ui/traffic", 380),
    Picture("traffic", f"/ui/traffic/{MODEL}", 1040),
    Picture("rollouts", "/ui/rollouts", 400),
    Picture("rollout", f"/ui/rollouts/{MODEL}", 1040, dark=True),
    Picture("monitors", "/ui/monitors", 560),
    Picture("monitor", f"/ui/monitors/{MODEL}", 1240),
    Picture("predictions", "/ui/predictions?model=price-of-fuel", 640),
    Picture("prediction", "/ui/predictions/flight-00", 900),
    Picture("feature-times", "/ui/predictions/flight-00?times=true", 460, to="#inputs"),
    Picture("explanation", "/ui/predictions/flight-00?explain=true", 560, to="#explanation"),
    Picture("features", "/ui/features", 560),
    Picture("feature", f"/ui/features/{VIEW}", 1500),
    Picture("source", f"/ui/sources/{SOURCE}", 420),
    Picture("experiments", "/ui/experiments", 380),
    Picture("experiment", f"/ui/experiments/{MODEL}", 640),
    Picture("run", f"/ui/runs/{RUNS[0]}", 1100),
    Picture("runs-compare", f"/ui/runs/compare?{_COMPARED}", 1020, width=1280),
    Picture("functions", "/ui/functions", 760),
    Picture("function", "/ui/functions/refresh_flights", 900),
    Picture("invocations", "/ui/invocations", 600),
    Picture("invocation", f"/ui/invocations/{WORK['waiting']}", 900),
    Picture("dead-letter", f"/ui/invocations/{WORK['dead']}", 760, dark=True),
    Picture("queue", "/ui/queue", 760),
    Picture("costs", "/ui/costs", 760),
    Picture("reports", "/ui/reports", 420),
    Picture("audit", "/ui/audit?since=2026-02-01", 700),
    Picture("tokens", "/ui/tokens", 560),
    Picture("phone", f"/ui/models/{MODEL}/versions/5", 844, dark=True, width=PHONE["width"]),
    Picture("phone-monitor", f"/ui/monitors/{MODEL}", 844, dark=True, width=PHONE["width"]),
)


_TIMEOUT_MS = 600_000
_COLOURS = 256  # of a picture, half of whose size they make


@function(http=True, demand=lambda **_: Demand(cpus=4, gpus=1))
def fine_tune(model: str, epochs: int = 3) -> int:
    """Train a model further on new rows."""
    return len(model) * epochs


def main(arguments: list[str]) -> int:
    """Write the pictures into a folder; returns the exit code."""
    folder, chosen = Path(arguments[0]), set(arguments[1:])
    with (
        tempfile.TemporaryDirectory() as temporary,
        _served(Path(temporary)) as running,
        _browser() as browser,
    ):
        visitors = {}
        for each in PICTURES:
            if chosen and each.name not in chosen:
                continue
            look = (each.width, each.dark, each.by)
            if look not in visitors:
                scheme = "dark" if each.dark else "light"
                viewport = {"width": each.width, "height": 900}
                visitors[look] = person(browser, running, color_scheme=scheme, viewport=viewport)
                visitors[look].page.set_default_timeout(_TIMEOUT_MS)
                if each.by:
                    visitors[look].sign_in(running.platform.tokens[each.by])
            _take(visitors[look], running, each, folder)
    return 0


def _take(visitor: Any, running: Served, picture: Picture, folder: Path) -> None:
    visitor.page.set_viewport_size({"width": picture.width, "height": 900})
    _answer_requests(running)
    visitor.go(picture.path)
    visitor.page.wait_for_load_state("load")
    whole = int(visitor.page.evaluate("document.documentElement.scrollHeight"))
    place = visitor.page.locator(picture.to).first.bounding_box()["y"] - 24 if picture.to else 0
    height = min(picture.height, whole - place)
    clip = {"x": 0, "y": place, "width": picture.width, "height": height}
    shot = Image.open(BytesIO(visitor.page.screenshot(clip=clip, full_page=True))).convert("RGB")
    few = shot.quantize(_COLOURS, method=Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE)
    few.save(folder / f"{picture.name}.png", optimize=True)
    sys.stdout.write(f"{picture.name}.png: {picture.path}, {whole} pixels high\n")


def _answer_requests(running: Served) -> None:
    """Count requests up to now."""
    client = redis.Redis.from_url(str(running.platform.context.redis_url))
    answer_requests(client, time.time())
    client.close()


@contextmanager
def _served(folder: Path) -> Iterator[Served]:
    store = open_store(f"file://{folder / 'store'}")
    fill(store, folder / "versions")
    begin_rollout(store)
    for write in (fill_work, fill_runs, fill_monitors, fill_features, fill_predictions):
        write(store)
    known = NOW - timedelta(minutes=30)
    row = {"origin": ["SFO"], "event_timestamp": [known], "wind": [12.5], "sky": ["clear"]}
    FeatureStore(store, clock=lambda: known, actor="ada").write_offline(VIEW, pa.table(row))
    (folder / "redis").mkdir()
    counting = RedisServer(folder / "redis")
    counting.start()
    platform = make_platform(folder / "store", counting.url)
    for name, kind in (
        ("late-flights", "model"),
        ("features-weather", "features"),
    ):
        platform.context.store.put(f"reports/{name}.html", f"<h1>{kind}</h1>".encode())
    with use_context(platform.context):
        set_quota("forecasting", gpus=1, cpus=8, members=["ada"])
    work = Work(store)
    for number in range(2):
        work.submit(f"tune-{number}", fine_tune, model=MODEL)
    try:
        with serve(platform) as running:
            yield running
    finally:
        counting.kill()


@contextmanager
def _browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright  # late: only where there is a browser

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


if __name__ == "__main__":
    if len(sys.argv) < 2 or shutil.which(str(CHROMIUM)) is None:
        sys.exit(f"{__doc__}\nIt needs Chromium.")
    sys.exit(main(sys.argv[1:]))
