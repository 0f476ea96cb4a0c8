"""Fills every panel of every dashboard by real requests to a platform of its own, looks at each, and draws them.

python -m toque.load.panels WEIGHTS.gguf [--minutes 8] [--folder build/panels] [--pictures FOLDER] [--hold FILE]

WEIGHTS.gguf is a small language model, as `make demo-llm` installs one in .venv/models. The platform serves models in arms with a shadow, one
that fails now and then, one by key, a pool with less memory than its models take, and the language model, of which one arm declines;
it follows a stream, trains in a queue with a quota and a budget, traces, and loses Redis for some seconds. A Prometheus (Debian's package)
scrapes it. The scenario ends as soon as no panel has been without a number, at the earliest after three minutes, so that there is something to see.

Exit code 0: every panel had something to show; 1: those that it names had nothing within `--minutes`; 2: the platform or Prometheus
did not start. Platform, series and Prometheus's log lie in `--folder`, which is emptied first. With `--hold` the platform is
kept as it is until that file is removed, to follow a runbook on it; its addresses stand in the file meanwhile.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import redis

from toque.clusters.monitoring.dashboards import check_all, draw_all
from toque.load.benchmarks.platform.counter import NotPossible, Platform, started
from toque.load.benchmarks.timing import print_machine
from toque.load.otlp_receiver import Receiver, receiving
from toque.load.panels.callers import Callers
from toque.load.panels.disturbances import kill_engine, stop_redis
from toque.load.panels.models import prepare
from toque.load.panels.project import ANSWERING, CODES, HELPER, KEYED
from toque.load.panels.watching import NotWatched, watched

_READY_S = 300.0
_LEAST_S, _LOOK_S = 180.0, 10.0
_BROKEN_AT_S = ((50.0, "engine"), (70.0, "redis"), (130.0, "redis"))
_SCORED = {"share": 1, "scorers": [{"kind": "refusal"}, {"kind": "length", "max_length": 200}], "drift": None}
_QUOTA = {"team": "kitchen", "at_once": 1, "cpus": 4, "members": ["admin"], "money": 0.05}
_PRICES = {"currency": "EUR", "cpu_hour": 0.4, "gpu_hour": 2.0}
_POOL_GB = 0.0011


def main() -> None:
    """Fill the panels, and print which had nothing to show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path)
    parser.add_argument("--minutes", type=float, default=8, help="for which panels are waited for at most")
    parser.add_argument("--folder", type=Path, default=Path("build/panels"))
    parser.add_argument("--pictures", type=Path, help="where to draw the dashboards")
    parser.add_argument("--hold", type=Path, help="file that keeps the platform until it is removed")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended then too
    print_machine("ray", "torch")
    try:
        sys.exit(fill(given))
    except (NotPossible, NotWatched, httpx.HTTPError, redis.RedisError, OSError) as error:
        print(f"panels: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("panels: interrupted; the platform has been ended")


def fill(given: argparse.Namespace) -> int:
    """Start everything, look until no panel is empty, and draw. Raises: NotPossible, NotWatched, httpx.HTTPError, OSError."""
    folder = given.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)  # it stays where a disk is mounted in it
    store_url, home = (folder / "store").as_uri(), folder / "home"
    prepared = prepare(store_url, folder / "artifacts", given.weights)
    with ExitStack() as running:
        collector = running.enter_context(receiving())
        platform = running.enter_context(
            started(
                home,
                store_url,
                project="toque.load.panels.project",
                cpus=8,
                environment=_environment(collector),
            )
        )
        state = json.loads((home / "up.json").read_text())
        begun = time.monotonic()
        prometheus = running.enter_context(
            watched(
                folder / "prometheus",
                door=f"127.0.0.1:{state['ports']['http']}",
                haproxy=f"127.0.0.1:{state['ports']['metrics']}",
                token=platform.client.headers["Authorization"].split()[1],
            )
        )
        events = running.enter_context(redis.Redis.from_url(state["redis_url"], socket_timeout=30))
        callers = Callers(platform.client, prepared, events)
        _make_ready(platform)
        with callers.calling():
            empty = _looked(prometheus, callers, home, begun, given.minutes)
            minutes = (time.monotonic() - begun) / 60
            if given.pictures is not None:
                draw_all(prometheus, given.pictures, minutes=minutes)
            _hold(given.hold, {"home": str(home), "prometheus": prometheus, "store": store_url})
        _report(callers, collector, minutes)
    print(f"{len(empty)} panels had nothing to show within {minutes:.1f} min")
    return 1 if empty else 0


def _environment(collector: Receiver) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "TOQUE_TRACE_SHARE": "0.2",
        "TOQUE_POOL_MEMORY_GB": str(_POOL_GB),
        "TOQUE_PRICES": json.dumps(_PRICES),
        "TOQUE_GENERATIVE_REPLICAS": "1",
    }


def _make_ready(platform: Platform) -> None:
    """Set the quota, and wait until the models answer; the language model has its time later. Raises: NotPossible, httpx.HTTPError."""
    platform.call("set_quota", _QUOTA)
    platform.call("set_language_monitors", {"model": HELPER, "monitors": _SCORED})
    for model in (ANSWERING, CODES, KEYED):
        _until(
            lambda model=model: platform.client.get(f"/v2/models/{model}/ready").status_code == 200,  # type: ignore[misc]
            f"model {model!r} is not ready",
        )


def _until(there: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + _READY_S
    while not there():
        if time.monotonic() > deadline:
            raise NotPossible(f"{otherwise} within {_READY_S:.0f} s")
        time.sleep(0.5)


def _looked(prometheus: str, callers: Callers, home: Path, begun: float, minutes: float) -> list[str]:
    """Break what is to be broken, and look until no panel is empty; returns the lines of those that are, and prints all."""
    broken, calling = list(_BROKEN_AT_S), time.monotonic()
    while True:
        if broken and time.monotonic() - calling > broken[0][0]:
            _break(broken.pop(0)[1], callers, home)
        lines = check_all(prometheus, minutes=(time.monotonic() - begun) / 60)
        empty = [line for line in lines if line.startswith("empty")]
        passed = time.monotonic() - calling
        if passed > 60 * minutes or (passed > _LEAST_S and not broken and not empty):
            print("\n".join(lines), flush=True)
            return empty
        time.sleep(_LOOK_S)


def _break(what: str, callers: Callers, home: Path) -> None:
    if what == "engine":
        with suppress(OSError):  # none runs yet: the panels of language models stay empty, and are named
            kill_engine(home)
    else:
        stop_redis(callers.events)


def _hold(file: Path | None, addresses: dict[str, Any]) -> None:
    """Write the addresses to a file, and wait until it is removed."""
    if file is None:
        return
    file.write_text(json.dumps(addresses, indent=1))
    print(f"held until {file} is removed", flush=True)
    while file.exists():
        time.sleep(1)


def _report(callers: Callers, collector: Receiver, minutes: float) -> None:
    print(f"{minutes:.1f} min; {len(collector.spans)} spans came to the collector")
    for name in sorted({*callers.done, *callers.failed}):
        problem = callers.problems.get(name, "")
        print(f"  {name}: {callers.done[name]} times, {callers.failed[name]} failed {problem}")


if __name__ == "__main__":
    main()
