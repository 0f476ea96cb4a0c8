"""Measurement of an idle platform's store requests and CPU: `python -m tests.ray_apps.idle_platform [--polling]`.

Two each of ticker, gateway, MLflow's protocol and a model's replica, in processes of their own, without Ray, on a folder and a
Redis. Prints each process's requests a second and share of a core, and their sums. --polling: without announcements.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

ROLES = ("ticker", "gateway", "mlflow", "predictor")
MODEL = "mlp"
SETTLED_S = 15.0


def main() -> None:
    """Measure the platform, or be one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--polling", action="store_true")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role is None:
        _measure(given)
        return
    from toque.functions.runtime.changes import (
        ChangeFeed,  # late: only a process of the platform needs it
    )

    with mock.patch.object(ChangeFeed, "covers", return_value=False) if given.polling else nullcontext():
        _run(given.role, given.seconds)


def _measure(given: argparse.Namespace) -> None:
    from tests.redis_server import RedisServer
    from toque.load.benchmarks.serving.fixtures import BenchmarkModel, register
    from toque.load.benchmarks.serving.floor import small_mlp  # late: only the measuring process needs these

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = RedisServer(folder)
        server.start()
        url = f"file://{folder}/store"
        register(url, folder / "models", {MODEL: BenchmarkModel(small_mlp())})
        environment = os.environ | {"TOQUE_STORE": url, "TOQUE_REDIS_URL": server.url}
        command = [sys.executable, "-m", "tests.ray_apps.idle_platform", "--seconds", str(given.seconds)]
        command += ["--polling"] * given.polling
        members = [
            subprocess.Popen(
                [*command, "--role", role],
                env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for role in (*ROLES, *ROLES)
        ]  # fmt: skip
        for each in members:
            assert each.stdout is not None
            assert each.stdout.readline() == "ready\n"
        for each in members:
            assert each.stdin is not None
            each.stdin.write("go\n")
            each.stdin.flush()
        found = [json.loads(each.communicate()[0]) for each in members]
        server.kill()
    for each in found:
        rate = sum(each["requests"].values())
        _say(f"{each['role']:10} {each['core']:.4f} of a core, {rate:.2f} requests/s {each['requests']}")
    requests = sum((Counter(each["requests"]) for each in found), Counter())
    _say(
        f"all        {sum(each['core'] for each in found):.4f} of a core, {sum(requests.values()):.2f} requests/s"
    )


def _run(role: str, seconds: float) -> None:
    """Be a process of the platform, and print what it asked of the store once it has settled."""
    from toque.registry.store.requests import REQUESTS  # late: as above

    kept = _started(role)
    _say("ready")
    sys.stdin.readline()
    time.sleep(SETTLED_S)
    before, cpu = REQUESTS.by_part(), time.process_time()
    time.sleep(seconds)
    core, after = (time.process_time() - cpu) / seconds, REQUESTS.by_part()
    new = {
        f"{operation} {part}": (n - before.get((operation, part), 0)) / seconds
        for (operation, part), n in after.items()
    }
    _say(
        json.dumps(
            {"role": role, "core": core, "requests": {name: rate for name, rate in new.items() if rate}}
        )
    )
    del kept
    os._exit(0)


def _started(role: str) -> Any:
    if role == "ticker":
        from toque.ray_apps.ticker import TickerReplica

        ticker = TickerReplica()
        while ticker._due._tasks is None:  # importing the functions takes long on a busy machine
            time.sleep(0.1)
        return ticker
    if role == "gateway":
        from toque.ray_apps.gateway import deployment

        gateway = deployment.build()
        gateway.state.services.catalogue()
        return gateway
    if role == "mlflow":
        from toque.ray_apps.mlflow.app import build

        return build()
    from toque.ray_apps.predictor import PredictorOptions
    from toque.ray_apps.predictor.deploy.deployment import build_predictor

    return build_predictor(MODEL, PredictorOptions.from_environment(os.environ))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
