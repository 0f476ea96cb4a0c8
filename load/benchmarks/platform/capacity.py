"""Benchmark of the capacity model: each configuration is left out, told from the others, and compared with what was measured.

python -m toque.load.benchmarks.platform.capacity [--rows 1 8 32 128] [--rounds 2] [--seconds 4] [--save FILE]

A platform of its own, in a temporary folder and on free ports, serves a small MLP and one of 8.4 million weights, each in one replica
and in two. A point is the processor time that a request takes in the replicas, so a busy machine says nearly the same as an idle one. The
exit code is 1 if a configuration that was left out is told more than 15 % wrong; 2 if nothing was measured.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
from pathlib import Path

import httpx

from toque.load.benchmarks.platform.capacity_project import REPLICAS
from toque.load.benchmarks.platform.counter import NotPossible as NotStarted
from toque.load.benchmarks.platform.counter import started
from toque.load.benchmarks.serving.floor import small_mlp
from toque.load.benchmarks.serving.models import BenchmarkModel, WideMlp, register
from toque.load.benchmarks.timing import print_machine
from toque.load.capacity_model.fit import fit_cost
from toque.load.capacity_model.points import Point
from toque.load.capacity_model.probe import Probe
from toque.load.scenarios.target import NotPossible, Target

MOST = 0.15  # relative error of a configuration that was left out
KINDS = ("small", "wide")


def main() -> None:
    """Measure points, then tell each configuration from the others."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement")
    parser.add_argument("--save", type=Path, help="file for the points, by model")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended then too
    print_machine("ray", "torch")
    try:
        with tempfile.TemporaryDirectory(prefix="capacity-") as folder:
            found = measured(Path(folder).resolve(), given)
    except (NotStarted, NotPossible, httpx.HTTPError, OSError) as error:
        print(f"capacity: {error}", file=sys.stderr)
        sys.exit(2)
    if given.save:
        content = {kind: [point.model_dump(exclude_none=True) for point in found[kind]] for kind in KINDS}
        given.save.write_text(json.dumps(content, indent=1) + "\n")
    sys.exit(max(verdict(kind, found[kind]) for kind in KINDS))


def measured(folder: Path, given: argparse.Namespace) -> dict[str, list[Point]]:
    """Measure every configuration on a new platform. Raises: NotStarted, NotPossible, httpx.HTTPError, OSError."""
    store_url, home = (folder / "store").as_uri(), folder / "home"
    made = {"small": BenchmarkModel(small_mlp()), "wide": BenchmarkModel(WideMlp().eval())}
    models = {name: made[name.split("-")[0]] for name in REPLICAS}
    token = register(store_url, folder / "artifacts", models)
    found: dict[str, list[Point]] = {kind: [] for kind in KINDS}
    with started(
        home, store_url, project="toque.load.benchmarks.platform.capacity_project", cpus=8
    ) as platform:
        redis_url = json.loads((home / "up.json").read_text())["redis_url"]
        for name in REPLICAS:
            target = Target(str(platform.client.base_url).rstrip("/"), token, name)
            probe = Probe(target, home, redis_url, seconds=given.seconds)
            print(f"{name}:", flush=True)
            found[name.split("-")[0]] += probe.points(given.rows, rounds=given.rounds, report=_say)
    return found


def verdict(kind: str, points: list[Point]) -> int:
    """Leave each configuration out, at all its rates, and tell it; returns 1 if one is told more than 15 % wrong."""
    worst, inside = 0.0, 0
    for rows, replicas in sorted({(point.rows, point.replicas) for point in points}):
        others = [point for point in points if (point.rows, point.replicas) != (rows, replicas)]
        model, errors = fit_cost(others, utilisation=0.6), []
        for point in points:
            if (point.rows, point.replicas) == (rows, replicas):
                told = model.cost_s(rows, replicas=replicas, rate=point.rate)
                errors.append(told.value / point.busy_s(0.6) - 1)
                inside += told.low <= point.busy_s(0.6) <= told.high
        error = statistics.median(errors)
        worst = max(worst, abs(error))
        print(
            f"{kind}, {rows} rows, {replicas} replicas, left out: told {error:+.1%} off ({len(errors)} measurements)"
        )
    whole = fit_cost(points, utilisation=0.6)
    levels = ", ".join(f"{whole.cost_s(int(rows)).value * 1e6:.0f}" for rows in whole.knots)
    print(
        f"{kind}: a replica takes {whole.idle:.3f} cores anyway, a request of {whole.knots.astype(int).tolist()} rows {levels} µs; "
        f"at most {worst:.1%} off (target {MOST:.0%}), {inside} of {len(points)} measurements in their interval"
    )
    return int(worst > MOST)


def _say(line: str) -> None:
    print(f"  {line}", flush=True)


if __name__ == "__main__":
    main()
