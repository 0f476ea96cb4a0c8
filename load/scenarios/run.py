"""Load test of a running platform against its objectives: `python -m load.scenarios.run`, exit code 1 when one is missed.

Target and token come from TOQUE_URL and TOQUE_TOKEN; without them, from what `toque up` left in `.toque`.
Exit code 2: the load could not be put on (no server, no model, no locust).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from load.scenarios.slo import Finding, Load, Measured, Slo, judge

HERE = Path(__file__).parent
_NAME = "infer"


class NotPossible(Exception):  # noqa: N818 - a state of the world, said to a person
    """Raised where the load cannot be generated; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Target:
    """Target of the load: a model at an address, with a token that may call it."""

    url: str
    token: str | None
    model: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the load and print the verdict; the exit code is 0, 1 or 2."""
    chosen = _parser().parse_args(arguments)
    try:
        slo = Slo.read(chosen.slo)
        target = find_target(os.environ, url=chosen.url, model=chosen.model)
        print(f"{target.model} at {target.url}: {_described(slo.load)}", flush=True)
        measured = put_load(target, slo.load, keys=chosen.keys)
    except (NotPossible, OSError, ValueError) as error:
        print(f"load: {error}", file=sys.stderr)
        return 2
    findings = judge(measured, slo.objectives)
    for finding in findings:
        print(_line(finding))
    return 0 if all(finding.held for finding in findings) else 1


def find_target(
    environment: Mapping[str, str], *, url: str | None = None, model: str | None = None
) -> Target:
    """Find the model and address to load.

    url, model: go before the environment. A model that nobody names is the first that has a champion.
    Raises: NotPossible if there is no address, no server or no model.
    """
    home = Path(environment.get("TOQUE_HOME", ".toque"))
    url = url or environment.get("TOQUE_URL") or _address(home / "up.json")
    token_file = home / "token"
    token = environment.get("TOQUE_TOKEN") or (
        token_file.read_text().strip() if token_file.exists() else None
    )
    model = model or environment.get("TOQUE_MODEL") or _first_model(url, token)
    return Target(url.rstrip("/"), token, model)


def put_load(target: Target, load: Load, *, keys: Path | None = None) -> Measured:
    """Run locust without a window in a process of its own and return what it measured.

    keys: file of rows for requests by key; tensors are sent without it.
    Raises: NotPossible if locust ends without statistics.
    """
    with tempfile.TemporaryDirectory() as folder:
        warm_up = _locust(target, load, load.warm_up_s, folder, keys) if load.warm_up_s else None
        if warm_up is not None and not warm_up.requests:
            raise NotPossible(f"no request was sent to {target.url}; see the failures above")
        return _locust(target, load, load.duration_s, folder, keys)


def _locust(target: Target, load: Load, seconds: int, folder: str, keys: Path | None) -> Measured:
    report = Path(folder) / f"{time.monotonic_ns()}"
    failures = report.with_suffix(".failures")
    shape = ["--users", str(load.users), "--spawn-rate", str(load.users), "--run-time", f"{seconds}s"]
    quiet = [
        "--headless",
        "--only-summary",
        "--loglevel",
        "ERROR",
        "--exit-code-on-error",
        "0",
        "--stop-timeout",
        "5",
    ]
    program = [sys.executable, "-m", "locust", "-f", str(HERE / "locustfile.py"), "--host", target.url]
    done = subprocess.run(
        [*program, *shape, *quiet, "--json-file", str(report)],
        env=_environment(target, load, failures, keys),
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
    )
    written = report.with_suffix(".json")
    if done.returncode != 0 or not written.exists():
        raise NotPossible(f"locust ended with {done.returncode}:\n{done.stderr[-2000:]}")
    if failures.exists():
        for text, times in json.loads(failures.read_text()).items():
            print(f"  {times:6} x {text}")
    return Measured.of(json.loads(written.read_text()), name=_NAME)


def _environment(target: Target, load: Load, failures: Path, keys: Path | None) -> dict[str, str]:
    """Tell the locust user what to do; the token goes by the environment, where no list of processes shows it."""
    environment = {
        **os.environ,
        "TOQUE_MODEL": target.model,
        "TOQUE_LOAD_FAILURES": str(failures),
        "TOQUE_LOAD_RATE": str(load.requests_per_user_per_s),
        "TOQUE_LOAD_ROWS": str(load.rows_per_request),
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
    }
    environment |= {"TOQUE_TOKEN": target.token} if target.token else {}
    environment |= {"TOQUE_LOAD_KEYS": str(keys)} if keys else {}
    return environment


def _address(state: Path) -> str:
    """Read the address of the platform that `toque up` started here."""
    try:
        running = json.loads(state.read_text())
        return f"http://{running['settings']['host']}:{running['ports']['http']}"
    except FileNotFoundError:
        raise NotPossible(
            f"TOQUE_URL is not set and {state} does not exist; start one with `make up`"
        ) from None


def _first_model(url: str, token: str | None) -> str:
    """Ask the gateway for a model that has a champion."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = httpx.get(f"{url}/models", headers=headers, timeout=10.0)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise NotPossible(f"GET {url}/models: {error}; name a model by --model or TOQUE_MODEL") from None
    models: list[dict[str, Any]] = answer.json()
    name = next((str(model["name"]) for model in models if "champion" in model.get("aliases", {})), None)
    if name is None:
        raise NotPossible(f"no model at {url} has a champion; promote one, or name it by --model")
    return name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m load.scenarios.run", description=__doc__)
    parser.add_argument("--slo", type=Path, default=HERE / "slo.toml", help="load and objectives (TOML)")
    parser.add_argument("--url", help="address of the platform; TOQUE_URL otherwise")
    parser.add_argument("--model", help="model to load; TOQUE_MODEL, or the first with a champion, otherwise")
    parser.add_argument(
        "--keys", type=Path, help="JSON lines for requests by key; tensors are sent otherwise"
    )
    return parser


def _described(load: Load) -> str:
    rate = load.users * load.requests_per_user_per_s
    return (
        f"{load.users} users, {rate:g} requests/s for {load.duration_s} s after {load.warm_up_s} s of warm-up"
    )


def _line(finding: Finding) -> str:
    verdict = "held  " if finding.held else "MISSED"
    return f"  {verdict}  {finding.objective:16} {finding.measured:12.4g}   objective {finding.limit:g}"


if __name__ == "__main__":
    sys.exit(main())
