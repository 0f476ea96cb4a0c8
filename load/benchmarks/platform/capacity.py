"""Benchmark of the capacity model: each configuration is left out, told from the others, and compared with what was found.

A platform of its own, in a temporary folder and on free ports, serves a small MLP and one of 8.4 million weights, each in one replica
and in two; this module is also its project. A point is the processor time that a request takes in the replicas, so a busy machine says
nearly the same as an idle one. The exit code is 1 if a configuration that was left out is told more than 15 % wrong; 2 if nothing was
measured.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Annotated

from toque.functions.placement import Placement
from toque.load.benchmarks.harness import bound, main, say, temporary
from toque.load.benchmarks.servers import started
from toque.load.benchmarks.serving.fixtures import BenchmarkModel, register
from toque.load.benchmarks.serving.floor import small_mlp, wide_mlp
from toque.load.capacity_model.fit import Point, fit_cost
from toque.load.capacity_model.probe import Probe
from toque.load.scenarios.target import Target
from toque.load.unmonitored import unmonitored

MOST = 0.15  # relative error of a configuration that was left out
UTILISATION = 0.6
PROJECT = "toque.load.benchmarks.platform.capacity"
REPLICAS = {"small-1": 1, "small-2": 2, "wide-1": 1, "wide-2": 2}
FEATURES: list[object] = []
MODELS = [
    unmonitored(name, Placement(min_replicas=count, max_replicas=count)) for name, count in REPLICAS.items()
]


def run(
    *,
    rows: tuple[int, ...] = (1, 8, 32, 128),
    rounds: int = 2,
    seconds: Annotated[float, "of each measurement"] = 4,
    points: Annotated[Path | None, "file to write the points to, by model"] = None,
) -> None:
    """Measure points, then tell each configuration from the others."""
    networks = {"small": BenchmarkModel(small_mlp()), "wide": BenchmarkModel(wide_mlp())}
    measured: dict[str, list[Point]] = {kind: [] for kind in networks}
    with temporary() as folder:
        store_url = (folder / "store").as_uri()
        models = {name: networks[name.split("-")[0]] for name in REPLICAS}
        token = register(store_url, folder / "artifacts", models)
        with started(folder / "home", store_url, project=PROJECT, cpus=8) as platform:
            for name in REPLICAS:
                say(f"{name}:")
                target = Target(platform.url, token, name)
                probe = Probe(target, platform.home, platform.redis_url, seconds=seconds)
                measured[name.split("-")[0]] += probe.points(rows, rounds=rounds, report=say)
    if points:
        by_kind = {
            kind: [point.model_dump(exclude_none=True) for point in measured[kind]] for kind in measured
        }
        points.write_text(json.dumps(by_kind, indent=1) + "\n")
    for kind, found in measured.items():
        left_out(kind, found)


def left_out(kind: str, points: list[Point]) -> None:
    """Leave each configuration out, at all its rates, and tell it from the others."""
    worst, inside = 0.0, 0
    for rows, replicas in sorted({(point.rows, point.replicas) for point in points}):
        own = [point for point in points if (point.rows, point.replicas) == (rows, replicas)]
        model, errors = fit_cost([point for point in points if point not in own], utilisation=UTILISATION), []
        for point in own:
            told, busy_s = model.cost_s(rows, replicas=replicas, rate=point.rate), point.busy_s(UTILISATION)
            errors.append(told.value / busy_s - 1)
            inside += told.low <= busy_s <= told.high
        worst = max(worst, abs(statistics.median(errors)))
        say(f"{kind}, {rows} rows, {replicas} replicas, left out: told {statistics.median(errors):+.1%} off")
    whole = fit_cost(points, utilisation=UTILISATION)
    levels = ", ".join(f"{whole.cost_s(int(rows)).value * 1e6:.0f}" for rows in whole.knots)
    say(
        f"{kind}: a replica takes {whole.idle:.3f} cores anyway, a request of {whole.knots.astype(int).tolist()} rows {levels} µs; "
        f"{inside} of {len(points)} measurements in their interval"
    )
    bound(f"worst relative error of {kind}", worst, most=MOST)


if __name__ == "__main__":
    main(run, "ray", "torch")
